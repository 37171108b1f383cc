// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// THIS IS NOT THE ENTERPRISE EDITION. It is a bean of the tests of amsagent, under the name that jee-container.xml asks
// for, so that a Community Edition starts in cluster mode. It shows nothing of what real cluster nodes say to each other.
package io.antmedia.enterprise.cluster;

import java.io.IOException;
import java.lang.reflect.Method;
import java.math.BigInteger;
import java.net.NetworkInterface;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.util.Collections;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;

import org.slf4j.Logger;
import org.slf4j.LoggerFactory;
import org.springframework.beans.factory.DisposableBean;
import org.springframework.beans.factory.InitializingBean;
import org.springframework.context.ApplicationContext;
import org.springframework.context.ApplicationContextAware;
import org.springframework.util.ReflectionUtils;

import io.antmedia.AppSettings;
import io.antmedia.IAppSettingsUpdateListener;
import io.antmedia.ICreateAppListener;
import io.antmedia.IDeleteAppListener;
import io.antmedia.cluster.ClusterNode;
import io.antmedia.cluster.IClusterNotifier;
import io.antmedia.cluster.IClusterStore;
import io.antmedia.settings.ServerSettings;

/**
 * Writes this node's document every five seconds, and hands on the settings that another node has saved. Files in a folder
 * tell it to misbehave, for as long as they are there: no-row (it writes no document), id and address (it writes one with
 * another id or address, which is in the file).
 */
public class TcpCluster implements IClusterNotifier, ApplicationContextAware, InitializingBean, DisposableBean {

	private static final Logger logger = LoggerFactory.getLogger(TcpCluster.class);

	private static final Path MISBEHAVE = Path.of("/run/amsagent-test-beans");

	private final Map<String, IAppSettingsUpdateListener> listeners = new ConcurrentHashMap<>();
	private final ScheduledExecutorService timer = Executors.newSingleThreadScheduledExecutor(r -> {
		Thread t = new Thread(r, "test-bean-of-amsagent");
		t.setDaemon(true);
		return t;
	});
	private IClusterStore store;
	private ApplicationContext context;

	@Override
	public void afterPropertiesSet() {
		logger.warn("cluster mode by test beans of amsagent: this is not the Enterprise Edition");
		long period = ClusterNode.NODE_UPDATE_PERIOD;
		timer.scheduleAtFixedRate(() -> logged(this::beat), 0, period, TimeUnit.MILLISECONDS);
		timer.scheduleWithFixedDelay(() -> logged(this::handOn), period, period, TimeUnit.MILLISECONDS);
	}

	@Override
	public void destroy() {
		timer.shutdownNow(); // the document stays, as it does in the Enterprise Edition
	}

	private interface Work {
		void run() throws Exception;
	}

	private void logged(Work work) {
		try {
			work.run();
		} catch (Throwable e) { // an Error would end the timer without a word
			logger.error("test bean of amsagent, not of the Enterprise Edition", e);
		}
	}

	private void beat() throws Exception {
		if (Files.exists(MISBEHAVE.resolve("no-row"))) {
			return;
		}
		String ip = told("address", address());
		if (ip == null) {
			return; // the server's settings are not read yet
		}
		ClusterNode node = new ClusterNode(ip, told("id", id()) + ip);
		node.setLastUpdateTime(System.currentTimeMillis());
		store.addOrUpdate(node);
	}

	/**
	 * What ServerSettings would say. Its bean is not asked for where the environment tells: the timer would make that bean
	 * beside the server's own thread. A 2.17.1 (Spring 6.2) was seen on which it then never got an address.
	 */
	private String address() {
		Method environment = ReflectionUtils.findMethod(ServerSettings.class, "getHostAddressFromEnvironment"); // not in 2.4.3
		Object ip = environment == null ? null : ReflectionUtils.invokeMethod(environment, new ServerSettings());
		if (ip != null && !ip.equals("")) {
			return (String) ip;
		}
		return context.getBean(ServerSettings.BEAN_NAME, ServerSettings.class).getHostAddress();
	}

	private static String told(String what, String otherwise) throws IOException {
		Path file = MISBEHAVE.resolve(what);
		return Files.exists(file) ? Files.readString(file).strip() : otherwise;
	}

	/** The MD5 of the address of the first card that has one, as Enterprise is documented. */
	private static String id() throws Exception {
		byte[] mac = new byte[0];
		for (NetworkInterface card : Collections.list(NetworkInterface.getNetworkInterfaces())) {
			if (card.getHardwareAddress() != null) {
				mac = card.getHardwareAddress();
			}
		}
		return String.format("%032x", new BigInteger(1, MessageDigest.getInstance("MD5").digest(mac)));
	}

	private void handOn() throws Exception {
		for (Map.Entry<String, IAppSettingsUpdateListener> e : listeners.entrySet()) {
			AppSettings stored = store.getSettings(e.getKey());
			if (stored != null && stored.getUpdateTime() > updateTime(e.getValue())) {
				logger.info("test bean, not the Enterprise Edition: settings of {} were saved by another node", e.getKey());
				e.getValue().settingsUpdated(stored);
			}
		}
	}

	/** Of what an application has now. Old releases, as 2.10.0, do not say it: to these nothing is handed on. */
	private static long updateTime(IAppSettingsUpdateListener listener) throws Exception {
		try {
			Object current = IAppSettingsUpdateListener.class.getMethod("getCurrentSettings").invoke(listener);
			return ((AppSettings) current).getUpdateTime();
		} catch (NoSuchMethodException e) {
			return Long.MAX_VALUE;
		}
	}

	@Override
	public IClusterStore getClusterStore() {
		return store;
	}

	public void setClusterStore(IClusterStore store) {
		this.store = store;
	}

	@Override
	public void setApplicationContext(ApplicationContext context) {
		this.context = context;
	}

	@Override
	public void registerSettingUpdateListener(String app, IAppSettingsUpdateListener listener) {
		listeners.put(app, listener);
	}

	@Override
	public void registerCreateAppListener(ICreateAppListener listener) {
		// An application that was made on one node is not made on the others by this bean.
	}

	@Override
	public void registerDeleteAppListener(IDeleteAppListener listener) {
		// The same.
	}
}

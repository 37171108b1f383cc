// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// THIS IS NOT THE ENTERPRISE EDITION. It is a bean of the tests of amsagent, under the name that jee-container.xml asks
// for, so that a Community Edition starts in cluster mode. It shows nothing of what real cluster nodes say to each other.
package io.antmedia.enterprise.cluster;

import java.lang.reflect.Field;
import java.lang.reflect.Method;
import java.util.List;

import org.bson.Document;
import org.springframework.util.ReflectionUtils;

import com.mongodb.client.MongoClient;
import com.mongodb.client.MongoClients;
import com.mongodb.client.MongoCollection;

import dev.morphia.Datastore;
import dev.morphia.DeleteOptions;
import dev.morphia.Morphia;
import dev.morphia.query.FindOptions;
import dev.morphia.query.Query;
import dev.morphia.query.filters.Filters;

import io.antmedia.AppSettings;
import io.antmedia.cluster.ClusterNode;
import io.antmedia.cluster.IClusterStore;
import io.antmedia.datastore.db.MongoStore;
import io.antmedia.statistic.StatsCollector;

/** Keeps nodes and applications' settings in MongoDB, by the server's own Morphia and its own documents. */
public class ClusterStore implements IClusterStore {

	private final Datastore datastore;
	private final MongoCollection<Document> nodes;
	private StatsCollector stats;

	public ClusterStore(String host, String user, String password) {
		// The address is made by the server: what it does with passwords is what the tests are about.
		MongoClient client = MongoClients.create(MongoStore.getMongoConnectionUri(host, user, password));
		datastore = Morphia.createDatastore(client, "clusterdb");
		nodes = client.getDatabase("clusterdb").getCollection("clusternode");
		datastore.getMapper().map(List.of(ClusterNode.class, AppSettings.class));
		datastore.ensureIndexes();
	}

	private Query<ClusterNode> node(String field, String value) {
		return datastore.find(ClusterNode.class).filter(Filters.eq(field, value));
	}

	private Query<AppSettings> settings(String app) {
		return datastore.find(AppSettings.class).filter(Filters.eq("appName", app));
	}

	@Override
	public List<ClusterNode> getClusterNodes(int offset, int size) {
		return datastore.find(ClusterNode.class).iterator(new FindOptions().skip(offset).limit(size)).toList();
	}

	@Override
	public ClusterNode getClusterNode(String id) {
		return node("id", id).first();
	}

	@Override
	public ClusterNode getClusterNodeFromIP(String ip) {
		return node("ip", ip).first();
	}

	@Override
	public long getNodeCount() {
		return datastore.find(ClusterNode.class).count();
	}

	@Override
	public boolean deleteNode(String id) {
		return node("id", id).delete(new DeleteOptions()).getDeletedCount() == 1;
	}

	@Override
	public boolean addOrUpdate(ClusterNode node) {
		if (stats != null) {
			node.setCpu(stats.getCpuLoad() + "%");
			Method memory = ReflectionUtils.findMethod(StatsCollector.class, "getMemoryLoad"); // not in 2.4.3
			if (memory != null) {
				node.setMemory(ReflectionUtils.invokeMethod(memory, stats) + "%");
			}
		}
		// By field, as Enterprise is documented: what others wrote into the document stays.
		Document fields = new Document("ip", node.getIp()).append("lastUpdateTime", node.getLastUpdateTime());
		if (stats != null) {
			fields.append("cpu", node.getCpu()).append("memory", node.getMemory());
		}
		if (nodes.updateOne(new Document("_id", node.getId()), new Document("$set", fields)).getMatchedCount() == 0) {
			datastore.save(node);
		}
		return true;
	}

	@Override
	public synchronized boolean saveSettings(AppSettings settings) {
		AppSettings old = getSettings(settings.getAppName());
		if (old != null) {
			// One document for an application; the id has no setter.
			Field id = ReflectionUtils.findField(AppSettings.class, "dbId");
			ReflectionUtils.makeAccessible(id);
			ReflectionUtils.setField(id, settings, ReflectionUtils.getField(id, old));
		}
		datastore.save(settings);
		return true;
	}

	@Override
	public AppSettings getSettings(String app) {
		return settings(app).first();
	}

	@Override
	public List<AppSettings> getAllSettings() {
		return datastore.find(AppSettings.class).iterator().toList();
	}

	// Not in the interface of old releases, as 2.10.0.
	public long deleteAppSettings(String app) {
		return settings(app).delete(new DeleteOptions()).getDeletedCount();
	}

	// The same.
	public void setStatsCollector(StatsCollector collector) {
		stats = collector;
	}
}

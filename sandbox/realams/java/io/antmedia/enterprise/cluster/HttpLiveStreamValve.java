// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// THIS IS NOT THE ENTERPRISE EDITION. It is a bean of the tests of amsagent, under the name that jee-container.xml asks
// for, so that a Community Edition starts in cluster mode. It shows nothing of what real cluster nodes say to each other.
package io.antmedia.enterprise.cluster;

import java.io.IOException;

import jakarta.servlet.ServletException;

import org.apache.catalina.connector.Request;
import org.apache.catalina.connector.Response;
import org.apache.catalina.valves.ValveBase;

/** Passes every request on. */
public class HttpLiveStreamValve extends ValveBase {

	@Override
	public void invoke(Request request, Response response) throws IOException, ServletException {
		getNext().invoke(request, response);
	}

	/** Releases up to 2.4.3 hand one over. */
	public void setTokenGenerator(Object generator) {
		// Nobody asks this valve for a token.
	}
}

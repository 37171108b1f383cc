// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package readback lets tests read a written file with Java itself: java.util.Properties for the .properties files and
// Spring's XmlBeanDefinitionReader for jee-container.xml, as Ant Media Server does. A test of an editor with its own
// parser would miss the parser's errors.
//
//	java := readback.Start(t)                        // one JVM for all reads of this test
//	values, err := java.Properties("red5.properties")
//	beans, err := java.Beans("jee-container.xml")    // offline, validated against the schemas in Spring's jars
//
// Without a JDK or Spring (Debian: `make deps DEPS=install`), Start skips the test and names what is missing; with
// REQUIRE_JAVA=1 in the environment, as in CI, it fails instead.
//
// It is for tests only: a linter rule keeps it out of the agent. It never downloads anything and loads no class that a
// file names.
package readback

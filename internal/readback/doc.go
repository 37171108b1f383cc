// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package readback lets tests ask Java itself what it reads in a file that we wrote: java.util.Properties for the
// .properties files and Spring's XmlBeanDefinitionReader for jee-container.xml, which is what Ant Media Server uses.
// An editor that is only checked by its own parser is checked by its own mistakes.
//
//	java := readback.Start(t)                        // one JVM for all questions of this test
//	values, err := java.Properties("red5.properties")
//	beans, err := java.Beans("jee-container.xml")    // offline, validated against the schemas in Spring's jars
//
// Where there is no JDK or no Spring (Debian: `make deps DEPS=install`), Start skips the test and says what is missing; with
// REQUIRE_JAVA=1 in the environment, as in CI, it fails instead.
//
// It is for tests only: nothing of it is ever linked into the agent, which a linter rule sees to. It never fetches
// anything and loads no class that a file names.
package readback

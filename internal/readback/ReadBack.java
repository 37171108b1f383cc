// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

import java.io.BufferedReader;
import java.io.FileInputStream;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.io.OutputStream;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.Base64;
import java.util.Map;
import java.util.Properties;
import java.util.Set;
import java.util.TreeMap;
import java.util.logging.Level;
import java.util.logging.Logger;
import org.springframework.beans.MutablePropertyValues;
import org.springframework.beans.PropertyValue;
import org.springframework.beans.factory.config.BeanDefinition;
import org.springframework.beans.factory.config.BeanDefinitionHolder;
import org.springframework.beans.factory.config.ConstructorArgumentValues;
import org.springframework.beans.factory.config.RuntimeBeanNameReference;
import org.springframework.beans.factory.config.RuntimeBeanReference;
import org.springframework.beans.factory.config.TypedStringValue;
import org.springframework.beans.factory.support.AbstractBeanDefinition;
import org.springframework.beans.factory.support.DefaultListableBeanFactory;
import org.springframework.beans.factory.support.ManagedArray;
import org.springframework.beans.factory.xml.ResourceEntityResolver;
import org.springframework.beans.factory.xml.XmlBeanDefinitionReader;
import org.springframework.beans.factory.xml.XmlBeanDefinitionStoreException;
import org.springframework.core.io.FileSystemResource;
import org.springframework.util.PropertyPlaceholderHelper;
import org.xml.sax.InputSource;
import org.xml.sax.SAXException;
import org.xml.sax.SAXParseException;

/**
 * Reads files as Ant Media Server reads them: properties by java.util.Properties, jee-container.xml by Spring. One
 * process answers many questions, each a line on standard input, each answered by one line of JSON:
 *
 * <pre>
 *   properties PATH             {"properties":{"key":"value",…}}
 *   store PATH KEY VALUE …      {}      load, put, Properties.store in place: what saving in AMS's web panel does
 *   resolve PATH TEXT           {"text":"…"}   the placeholders of TEXT filled in by Spring from a properties file
 *   beans PATH                  {"beans":[…]}
 * </pre>
 *
 * Every word after the first is Base64 of UTF-8. What goes wrong is {"error":"…","line":n}, line 0 where Java names none.
 */
public final class ReadBack {
  /** Spring's own settings for placeholders, by which jee-container.xml gets the values of red5.properties. */
  private static final PropertyPlaceholderHelper PLACEHOLDERS = new PropertyPlaceholderHelper("${", "}", ":", false);

  /** Held, because a logger nobody holds forgets its level. */
  private static final Logger SPRING = Logger.getLogger("org.springframework");

  public static void main(String[] args) throws IOException {
    SPRING.setLevel(Level.WARNING);
    BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.US_ASCII));
    PrintStream out = new PrintStream(System.out, false, "US-ASCII");
    for (String line = in.readLine(); line != null; line = in.readLine()) {
      String[] words = line.split(" ", -1);
      for (int i = 1; i < words.length; i++) {
        words[i] = new String(Base64.getDecoder().decode(words[i]), StandardCharsets.UTF_8);
      }
      StringBuilder answer = new StringBuilder();
      try {
        answer(words, answer);
      } catch (Exception | StackOverflowError e) {
        answer.setLength(0);
        error(e, answer);
      }
      out.append(answer).append('\n').flush();
    }
  }

  private static void answer(String[] words, StringBuilder out) throws Exception {
    switch (words[0]) {
      case "properties":
        out.append("{\"properties\":");
        strings(new TreeMap<Object, Object>(load(words[1])), out);
        out.append('}');
        return;
      case "store":
        Properties changed = load(words[1]);
        for (int i = 2; i + 1 < words.length; i += 2) {
          changed.setProperty(words[i], words[i + 1]);
        }
        // Truncated and written in place, without a temporary file: so does the panel.
        try (OutputStream file = new FileOutputStream(words[1])) {
          changed.store(file, null);
        }
        out.append("{}");
        return;
      case "resolve":
        out.append("{\"text\":");
        string(PLACEHOLDERS.replacePlaceholders(words[2], load(words[1])), out);
        out.append('}');
        return;
      case "beans":
        beans(words[1], out);
        return;
      default:
        throw new IllegalArgumentException("unknown request " + words[0]);
    }
  }

  private static Properties load(String path) throws IOException {
    Properties properties = new Properties();
    try (InputStream file = new FileInputStream(path)) {
      properties.load(file);
    }
    return properties;
  }

  private static void beans(String path, StringBuilder out) throws Exception {
    DefaultListableBeanFactory factory = new DefaultListableBeanFactory();
    XmlBeanDefinitionReader reader = new XmlBeanDefinitionReader(factory);
    // Names of classes only: AMS's own are not here.
    reader.setBeanClassLoader(null);
    // What Spring's jars do not hold would be fetched from the network: refuse instead.
    reader.setEntityResolver(new ResourceEntityResolver(reader.getResourceLoader()) {
      @Override
      public InputSource resolveEntity(String publicId, String systemId) throws SAXException, IOException {
        InputSource found = super.resolveEntity(publicId, systemId);
        if (found == null) {
          throw new SAXException("not in Spring's jars, and nothing is fetched here: " + systemId);
        }
        return found;
      }
    });
    reader.loadBeanDefinitions(new FileSystemResource(path));
    out.append("{\"beans\":[");
    String separator = "";
    for (String name : factory.getBeanDefinitionNames()) {
      out.append(separator);
      bean(name, factory.getAliases(name), factory.getBeanDefinition(name), out);
      separator = ",";
    }
    out.append("]}");
  }

  private static void bean(String name, String[] aliases, BeanDefinition def, StringBuilder out) {
    out.append("{\"name\":");
    string(name, out);
    text("class", def.getBeanClassName(), out);
    text("parent", def.getParentName(), out);
    text("scope", def.getScope(), out);
    text("factory_bean", def.getFactoryBeanName(), out);
    text("factory_method", def.getFactoryMethodName(), out);
    if (def instanceof AbstractBeanDefinition) {
      text("init_method", ((AbstractBeanDefinition) def).getInitMethodName(), out);
      text("destroy_method", ((AbstractBeanDefinition) def).getDestroyMethodName(), out);
    }
    if (def.isLazyInit()) {
      out.append(",\"lazy\":true");
    }
    if (def.isAbstract()) {
      out.append(",\"abstract\":true");
    }
    texts("aliases", aliases, out);
    texts("depends_on", def.getDependsOn(), out);

    ConstructorArgumentValues args = def.getConstructorArgumentValues();
    if (!args.isEmpty()) {
      out.append(",\"args\":[");
      String separator = "";
      for (Map.Entry<Integer, ConstructorArgumentValues.ValueHolder> arg :
          new TreeMap<>(args.getIndexedArgumentValues()).entrySet()) {
        out.append(separator);
        argument(arg.getKey(), arg.getValue(), out);
        separator = ",";
      }
      for (ConstructorArgumentValues.ValueHolder arg : args.getGenericArgumentValues()) {
        out.append(separator);
        argument(-1, arg, out);
        separator = ",";
      }
      out.append(']');
    }

    MutablePropertyValues properties = def.getPropertyValues();
    if (!properties.isEmpty()) {
      out.append(",\"properties\":[");
      String separator = "";
      for (PropertyValue property : properties.getPropertyValues()) {
        out.append(separator).append("{\"name\":");
        string(property.getName(), out);
        out.append(",\"value\":");
        value(property.getValue(), out);
        out.append('}');
        separator = ",";
      }
      out.append(']');
    }
    out.append('}');
  }

  private static void argument(int index, ConstructorArgumentValues.ValueHolder arg, StringBuilder out) {
    out.append("{\"index\":").append(index);
    text("name", arg.getName(), out);
    text("type", arg.getType(), out);
    out.append(",\"value\":");
    value(arg.getValue(), out);
    out.append('}');
  }

  /** A value says what kind it is, and beside it is one member of that name. */
  private static void value(Object value, StringBuilder out) {
    if (value instanceof TypedStringValue) {
      TypedStringValue typed = (TypedStringValue) value;
      if (typed.getValue() == null) {
        out.append("{\"kind\":\"null\"}");
        return;
      }
      out.append("{\"kind\":\"text\",\"text\":");
      string(typed.getValue(), out);
      text("type", typed.getTargetTypeName(), out);
      out.append('}');
    } else if (value instanceof RuntimeBeanReference) {
      out.append("{\"kind\":\"ref\",\"ref\":");
      string(((RuntimeBeanReference) value).getBeanName(), out);
      out.append('}');
    } else if (value instanceof RuntimeBeanNameReference) {
      out.append("{\"kind\":\"idref\",\"idref\":");
      string(((RuntimeBeanNameReference) value).getBeanName(), out);
      out.append('}');
    } else if (value instanceof BeanDefinitionHolder) {
      BeanDefinitionHolder holder = (BeanDefinitionHolder) value;
      String name = holder.getBeanName();
      // Spring names a nameless inner bean after an address in memory, another one at each start.
      if (name.startsWith(holder.getBeanDefinition().getBeanClassName() + "#")) {
        name = "";
      }
      out.append("{\"kind\":\"bean\",\"bean\":");
      bean(name, holder.getAliases(), holder.getBeanDefinition(), out);
      out.append('}');
    } else if (value instanceof Map) { // also <props>
      out.append("{\"kind\":\"map\",\"map\":[");
      String separator = "";
      for (Map.Entry<?, ?> entry : ((Map<?, ?>) value).entrySet()) {
        out.append(separator).append("{\"key\":");
        value(entry.getKey(), out);
        out.append(",\"value\":");
        value(entry.getValue(), out);
        out.append('}');
        separator = ",";
      }
      out.append("]}");
    } else if (value instanceof Iterable) { // <list>, <set>, <array>: all under "list"
      String kind = value instanceof Set ? "set" : value instanceof ManagedArray ? "array" : "list";
      out.append("{\"kind\":\"").append(kind).append("\",\"list\":[");
      String separator = "";
      for (Object element : (Iterable<?>) value) {
        out.append(separator);
        value(element, out);
        separator = ",";
      }
      out.append("]}");
    } else {
      out.append("{\"kind\":\"text\",\"text\":");
      string(String.valueOf(value), out);
      out.append(",\"type\":");
      string(value == null ? "null" : value.getClass().getName(), out);
      out.append('}');
    }
  }

  private static void error(Throwable e, StringBuilder out) {
    int line = 0;
    if (e instanceof XmlBeanDefinitionStoreException) {
      line = ((XmlBeanDefinitionStoreException) e).getLineNumber();
    }
    String message = e.getClass().getSimpleName() + ": " + e.getMessage();
    for (Throwable cause = e; cause != null; cause = cause.getCause()) {
      if (line <= 0 && cause instanceof SAXParseException) {
        line = ((SAXParseException) cause).getLineNumber();
      }
    }
    out.append("{\"error\":");
    string(message, out);
    out.append(",\"line\":").append(Math.max(line, 0)).append('}');
  }

  private static void text(String name, String value, StringBuilder out) {
    if (value != null && !value.isEmpty()) {
      out.append(",\"").append(name).append("\":");
      string(value, out);
    }
  }

  private static void texts(String name, String[] values, StringBuilder out) {
    if (values == null || values.length == 0) {
      return;
    }
    values = values.clone();
    Arrays.sort(values); // Spring keeps them in a hash map
    out.append(",\"").append(name).append("\":[");
    String separator = "";
    for (String value : values) {
      out.append(separator);
      string(value, out);
      separator = ",";
    }
    out.append(']');
  }

  private static void strings(Map<?, ?> map, StringBuilder out) {
    out.append('{');
    String separator = "";
    for (Map.Entry<?, ?> entry : map.entrySet()) {
      out.append(separator);
      string((String) entry.getKey(), out);
      out.append(':');
      string((String) entry.getValue(), out);
      separator = ",";
    }
    out.append('}');
  }

  /** Everything beyond printable ASCII is escaped, so that no encoding on the way can change it. */
  private static void string(String s, StringBuilder out) {
    out.append('"');
    for (int i = 0; i < s.length(); i++) {
      char c = s.charAt(i);
      if (c == '"' || c == '\\') {
        out.append('\\').append(c);
      } else if (c < 0x20 || c > 0x7e) {
        out.append(String.format("\\u%04x", (int) c));
      } else {
        out.append(c);
      }
    }
    out.append('"');
  }

  private ReadBack() {}
}

// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package readback

import "iter"

// Beans are the top-level beans of a file in the order in which Spring registers them, including those that Spring adds
// for <context:annotation-config>.
type Beans []Bean

// Bean is one bean definition; absent values are empty. It has no position in the file: two files that define the same
// beans compare equal.
type Bean struct {
	// Name is the id, else the first name; a nameless bean at the top has class#0, class#1 …, a nameless inner one "".
	Name          string     `json:"name"`
	Aliases       []string   `json:"aliases"` // sorted
	Class         string     `json:"class"`
	Parent        string     `json:"parent"`
	Scope         string     `json:"scope"` // an inner bean has that of the outer one
	FactoryBean   string     `json:"factory_bean"`
	FactoryMethod string     `json:"factory_method"`
	InitMethod    string     `json:"init_method"`
	DestroyMethod string     `json:"destroy_method"`
	DependsOn     []string   `json:"depends_on"` // sorted
	Lazy          bool       `json:"lazy"`
	Abstract      bool       `json:"abstract"`
	Args          []Arg      `json:"args"`
	Properties    []Property `json:"properties"`
}

// Arg is a constructor argument. Index is -1 if not given.
type Arg struct {
	Index int    `json:"index"`
	Name  string `json:"name"`
	Type  string `json:"type"`
	Value Value  `json:"value"`
}

// Property is a property of a bean, in the order of the file.
type Property struct {
	Name  string `json:"name"`
	Value Value  `json:"value"`
}

// Value is the value of an argument or a property, before placeholders are resolved.
type Value struct {
	// Kind is text, ref, idref, bean, map, list, set, array or null; it selects the field below with the value.
	Kind string `json:"kind"`
	Text string `json:"text"`
	// Type is the type that a text is converted to.
	Type  string  `json:"type"`
	Ref   string  `json:"ref"`
	IDRef string  `json:"idref"`
	Bean  *Bean   `json:"bean"`
	List  []Value `json:"list"` // also of a set and of an array
	Map   []Entry `json:"map"`  // also of <props>
}

// Entry is one entry of a map, in the order of the file.
type Entry struct {
	Key   Value `json:"key"`
	Value Value `json:"value"`
}

// All walks the beans and all beans inside them, outer before inner.
func (b Beans) All() iter.Seq[*Bean] {
	return func(yield func(*Bean) bool) {
		for i := range b {
			if !b[i].walk(yield) {
				return
			}
		}
	}
}

// Lookup returns the first bean of this name, an inner one too, or nil.
func (b Beans) Lookup(name string) *Bean {
	for bean := range b.All() {
		if bean.Name == name {
			return bean
		}
	}
	return nil
}

// Classes returns the class names of all beans, inner ones too, in the order of All.
func (b Beans) Classes() []string {
	var classes []string
	for bean := range b.All() {
		classes = append(classes, bean.Class)
	}
	return classes
}

// Property returns the value of a property.
func (b *Bean) Property(name string) (Value, bool) {
	for _, p := range b.Properties {
		if p.Name == name {
			return p.Value, true
		}
	}
	return Value{}, false
}

func (b *Bean) walk(yield func(*Bean) bool) bool {
	if !yield(b) {
		return false
	}
	for i := range b.Args {
		if !b.Args[i].Value.walk(yield) {
			return false
		}
	}
	for i := range b.Properties {
		if !b.Properties[i].Value.walk(yield) {
			return false
		}
	}
	return true
}

func (v *Value) walk(yield func(*Bean) bool) bool {
	if v.Bean != nil && !v.Bean.walk(yield) {
		return false
	}
	for i := range v.List {
		if !v.List[i].walk(yield) {
			return false
		}
	}
	for i := range v.Map {
		if !v.Map[i].Key.walk(yield) || !v.Map[i].Value.walk(yield) {
			return false
		}
	}
	return true
}

package cli

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"

	"github.com/caarlos0/env/v11"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// EnvPrefix starts the name of every environment variable that gpulet reads.
const EnvPrefix = "GPULET_"

// Bind gives cmd a flag for every field of *cfg that has an env tag, fields of embedded structs
// included, and sets the fields to their defaults:
//
//	Epoch time.Duration `env:"EPOCH" envDefault:"10s" usage:"how often a plan is computed"`
//
// becomes --epoch and GPULET_EPOCH. A field without envDefault keeps the value it has. A struct
// field with envPrefix:"REPLY_" puts REPLY_ before the names in it. Bind panics where the struct
// itself is wrong: not a pointer to a struct, a type that cannot be parsed, a flag twice.
func Bind(cmd *cobra.Command, cfg any) {
	for _, f := range fields(cfg) {
		if raw, ok := f.tag.Lookup("envDefault"); ok && raw != "" {
			if err := f.set(raw); err != nil {
				panic(fmt.Sprintf("cli: default of %s: %v", f.key, err))
			}
		}
		flag := cmd.Flags().VarPF(f, f.flagName(), "", f.usage())
		if f.value.Kind() == reflect.Bool {
			flag.NoOptDefVal = "true"
		}
	}
}

// Load fills *cfg, which was given to Bind before: flags that were set, else GPULET_* variables,
// else defaults. An empty variable counts as unset. It then calls Validate, where there is one, on
// every embedded struct and on cfg. All its errors are usage errors that name the variable or
// flag, what was found and what was expected.
func Load(cmd *cobra.Command, cfg any) error {
	for _, f := range fields(cfg) {
		flag := cmd.Flags().Lookup(f.flagName())
		if flag != nil && flag.Changed {
			continue
		}
		raw := os.Getenv(EnvPrefix + f.key)
		if raw == "" {
			continue
		}
		if err := f.set(raw); err != nil {
			return Usagef("%s%s=%q: %w", EnvPrefix, f.key, raw, err)
		}
	}
	return asUsage(validate(reflect.ValueOf(cfg)))
}

// field is one setting; it is the pflag.Value of its flag.
type field struct {
	key   string // without EnvPrefix
	tag   reflect.StructTag
	value reflect.Value
}

var _ pflag.Value = (*field)(nil)

func fields(cfg any) []*field {
	v := reflect.ValueOf(cfg)
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
		panic(fmt.Sprintf("cli: config is a %T: expected a pointer to a struct", cfg))
	}
	return appendFields(nil, v.Elem(), "")
}

func appendFields(list []*field, v reflect.Value, prefix string) []*field {
	for i := range v.NumField() {
		sf := v.Type().Field(i)
		if !sf.IsExported() {
			continue
		}
		key, ok := sf.Tag.Lookup("env")
		switch {
		case ok:
			list = append(list, &field{key: prefix + key, tag: sf.Tag, value: v.Field(i)})
		case sf.Type.Kind() == reflect.Struct:
			list = appendFields(list, v.Field(i), prefix+sf.Tag.Get("envPrefix"))
		}
	}
	return list
}

func (f *field) flagName() string {
	return strings.ReplaceAll(strings.ToLower(f.key), "_", "-")
}

// usage is the help text; it names the variable too.
func (f *field) usage() string {
	return strings.TrimSpace(f.tag.Get("usage") + " [$" + EnvPrefix + f.key + "]")
}

// Set parses a flag's value.
func (f *field) Set(raw string) error { return f.set(raw) }

// String is the current value, for the help text.
func (f *field) String() string {
	if !f.value.IsValid() || f.value.IsZero() && f.value.Kind() != reflect.Bool {
		return ""
	}
	if f.value.Kind() == reflect.Slice {
		var parts []string
		for i := range f.value.Len() {
			parts = append(parts, fmt.Sprint(f.value.Index(i).Interface()))
		}
		return strings.Join(parts, ",")
	}
	return fmt.Sprint(f.value.Interface())
}

// Type is the word for the value in the help text.
func (f *field) Type() string {
	switch {
	case f.value.Type().String() == "time.Duration":
		return "duration"
	case f.value.Kind() == reflect.Slice:
		return "list"
	}
	return f.value.Kind().String()
}

// set parses raw with the env package, one field at a time so that an error can be told to the
// setting it belongs to.
func (f *field) set(raw string) error {
	one := reflect.New(reflect.StructOf([]reflect.StructField{{
		Name: "V", Type: f.value.Type(), Tag: `env:"V"`,
	}}))
	err := env.ParseWithOptions(one.Interface(), env.Options{Environment: map[string]string{"V": raw}})
	if err != nil {
		return expected(f.Type(), err)
	}
	f.value.Set(one.Elem().Field(0))
	return nil
}

var examples = map[string]string{
	"duration": "a duration such as 500ms or 10s",
	"bool":     "true or false",
	"list":     "values separated by commas",
}

// expected turns an error of the env package into words about the value.
func expected(kind string, err error) error {
	what, ok := examples[kind]
	switch {
	case ok:
	case strings.HasPrefix(kind, "int"), strings.HasPrefix(kind, "uint"):
		what = "a whole number"
	case strings.HasPrefix(kind, "float"):
		what = "a number"
	default:
		var parse env.ParseError
		if errors.As(err, &parse) {
			return parse.Err
		}
		return err
	}
	return fmt.Errorf("expected %s", what)
}

type validator interface{ Validate() error }

// validate calls Validate on embedded structs, then on the struct itself.
func validate(v reflect.Value) error {
	for i := range v.Elem().NumField() {
		sf := v.Elem().Type().Field(i)
		if !sf.Anonymous || sf.Type.Kind() != reflect.Struct || !sf.IsExported() {
			continue
		}
		if err := validate(v.Elem().Field(i).Addr()); err != nil {
			return err
		}
	}
	if c, ok := v.Interface().(validator); ok {
		return c.Validate()
	}
	return nil
}

package wire

import (
	"errors"
	"fmt"
	"strings"
)

// pathError is an error with the place in the body where it is: inputs[0].shape[2].
type pathError struct {
	path string
	err  error
}

func (e *pathError) Error() string { return e.path + ": " + e.err.Error() }
func (e *pathError) Unwrap() error { return e.err }

// at says that err is at or below the key elem; nil stays nil.
func at(elem string, err error) error {
	if err == nil {
		return nil
	}
	var inner *pathError
	if !errors.As(err, &inner) || inner != err {
		return &pathError{elem, err}
	}
	if !strings.HasPrefix(inner.path, "[") {
		elem += "."
	}
	return &pathError{elem + inner.path, inner.err}
}

// atIndex says that err is at or below element i of an array; nil stays nil.
func atIndex(i int, err error) error {
	if err == nil {
		return nil
	}
	return at(fmt.Sprintf("[%d]", i), err)
}

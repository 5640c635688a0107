package link

import (
	"errors"
	"io"
	"strings"
	"testing"
)

// FuzzRead: what the other side writes is read line by line to the end, whatever is in a line.
func FuzzRead(f *testing.F) {
	f.Add("{\"op\":\"assign\",\"revision\":1,\"models\":[{\"model\":\"m\",\"batch\":8,\"archive\":\"a\"}]}\n\nterminate called\n{\"op\":\"drain\"}")
	f.Add("{\"id\":\"a\",\"state\":\"ready\",\"models\":[{\"model\":\"m\",\"loaded\":true,\"answers\":{\"ok\":1}}]}\r\n[]\nnull\n\"\xff\"")
	f.Fuzz(func(t *testing.T, text string) {
		readAll(t, NewCommandReader(strings.NewReader(text)), text)
		readAll(t, NewReportReader(strings.NewReader(text)), text)
	})
}

func readAll[T any](t *testing.T, r *Reader[T], text string) {
	t.Helper()
	lines := 0
	for range strings.Count(text, "\n") + 2 {
		_, err := r.Read()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil && !IsLineError(err) {
			t.Fatal(err)
		}
		lines++
	}
	t.Errorf("%d values in %d lines", lines, strings.Count(text, "\n")+1)
}

package archtest

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// linkRE finds the targets of Markdown links and pictures.
var linkRE = regexp.MustCompile(`\]\(<?([^)\s>]+)>?(?:\s+"[^"]*")?\)`)

// codeRE is what is shown as it is.
var codeRE = regexp.MustCompile("(?s)```.*?```|`[^`\n]*`")

// deadLinks lists the relative links of a Markdown file, by name below root, that lead nowhere.
func deadLinks(root fs.FS, name, text string) []string {
	var dead []string
	for _, m := range linkRE.FindAllStringSubmatch(codeRE.ReplaceAllString(text, ""), -1) {
		target, _, _ := strings.Cut(m[1], "#")
		if target == "" || strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
			continue
		}
		file := filepath.ToSlash(filepath.Join(filepath.Dir(name), target))
		if _, err := fs.Stat(root, file); err != nil {
			dead = append(dead, name+": link to "+m[1]+": there is no "+file)
		}
	}
	return dead
}

func TestLinksInDocumentsLeadSomewhere(t *testing.T) {
	top, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	root := os.DirFS(top)
	err = fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && name != "." && (strings.HasPrefix(d.Name(), ".") || name == "build" || name == "bin"):
			return fs.SkipDir
		case d.IsDir() || filepath.Ext(name) != ".md":
			return nil
		}
		text, err := fs.ReadFile(root, name)
		if err != nil {
			return err
		}
		n++
		for _, line := range deadLinks(root, name, string(text)) {
			t.Error(line)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if n < 5 {
		t.Errorf("found only %d documents below %s", n, top)
	}
}

func TestDeadLinksAreFound(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "there.md"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	text := "[a](there.md) [b](there.md#part) [c](#part) [d](https://x.y/z) ![e](gone.png) [f](<../up.md> \"up\") " +
		"`[g](code.md)`\n```\n[h](block.md)\n```\n[i](sub/gone.md#x)"
	got := strings.Join(deadLinks(os.DirFS(dir), "a.md", text), "\n")
	want := "a.md: link to gone.png: there is no gone.png\na.md: link to ../up.md: there is no ../up.md\na.md: link to sub/gone.md#x: there is no sub/gone.md"
	if got != want {
		t.Errorf("found\n%s\nexpected\n%s", got, want)
	}
}

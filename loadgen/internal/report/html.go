package report

import (
	_ "embed"
	"encoding/json"
	"html/template"
	"io"
)

//go:embed page.html
var pageText string

var page = template.Must(template.New("page").Funcs(template.FuncMap{
	"percent":  func(f Figures) float64 { return 100 * f.ViolationShare() },
	"named":    func(name string, f Figures) namedFigures { return namedFigures{name, f} },
	"times100": func(v *float64) float64 { return 100 * *v },
}).Parse(pageText))

type namedFigures struct {
	Name string
	Figures
}

// WriteHTML writes the runs as one page that needs nothing else: figures, the distribution of
// latencies and the timeline of each model. names are the runs' titles.
func WriteHTML(w io.Writer, names []string, runs []Run) error {
	type titled struct {
		Name     string
		Headline string
		Run
	}
	var data struct {
		Runs []titled
		JSON template.JS
	}
	for i, r := range runs {
		data.Runs = append(data.Runs, titled{names[i], r.headline(), r})
	}
	text, err := json.Marshal(data.Runs) // escapes <, > and &, so it may stand in a script
	if err != nil {
		return err
	}
	data.JSON = template.JS(text)
	return page.Execute(w, data)
}

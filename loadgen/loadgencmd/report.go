package loadgencmd

import (
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gpulet/gpulet/loadgen/internal/report"
	"github.com/gpulet/gpulet/shared/cli"
)

// reportConfig is the configuration of loadgen report.
type reportConfig struct {
	HTML, CSV string // files to write; - is standard output
}

func newReportCommand() *cobra.Command {
	var cfg reportConfig
	cmd := &cobra.Command{
		Use:   "report RUN.json...",
		Short: "Show a run that was written with --json, or several compared",
		Example: `  loadgen report run.json
  loadgen report before.json after.json --html compared.html`,
		Args: cobra.MinimumNArgs(1),
	}
	cmd.Flags().StringVar(&cfg.HTML, "html", "", "`file` for the report as HTML (- for standard output)")
	cmd.Flags().StringVar(&cfg.CSV, "csv", "", "`file` for the figures of one run as CSV (- for standard output)")
	cmd.RunE = func(cmd *cobra.Command, files []string) error {
		return showRuns(cfg, files, cmd.OutOrStdout())
	}
	return cmd
}

func showRuns(cfg reportConfig, files []string, stdout io.Writer) error {
	if cfg.CSV != "" && len(files) != 1 {
		return cli.Usagef("--csv: found %d runs: expected one", len(files))
	}
	var names []string
	var runs []report.Run
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		r, err := report.Parse(file, data)
		if err != nil {
			return err
		}
		runs = append(runs, r)
		names = append(names, strings.TrimSuffix(filepath.Base(file), ".json"))
	}
	if cfg.HTML != "" {
		err := writeFile(cfg.HTML, stdout, func(w io.Writer) error { return report.WriteHTML(w, names, runs) })
		if err != nil || cfg.HTML == "-" {
			return err
		}
	}
	if cfg.CSV != "" {
		if err := writeFile(cfg.CSV, stdout, runs[0].WriteCSV); err != nil || cfg.CSV == "-" {
			return err
		}
	}
	if len(runs) == 1 {
		return runs[0].WriteTable(stdout)
	}
	return report.WriteComparison(stdout, names, runs)
}

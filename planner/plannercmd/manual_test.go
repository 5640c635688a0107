package plannercmd

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gpulet/gpulet/planner/internal/control"
	"github.com/gpulet/gpulet/shared/doctest"
)

func TestMetricsAreInTheManual(t *testing.T) {
	doctest.Metrics(t, "planner", func(reg prometheus.Registerer) {
		control.NewMetrics(reg)
	})
}

func TestSettingsAreInTheManual(t *testing.T) { doctest.Settings(t, "planner", newRootCommand()) }

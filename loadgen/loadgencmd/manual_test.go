package loadgencmd

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gpulet/gpulet/shared/doctest"
)

func TestMetricsAreInTheManual(t *testing.T) {
	doctest.Metrics(t, "loadgen", func(reg prometheus.Registerer) {
		newMeter(reg)
	})
}

func TestSettingsAreInTheManual(t *testing.T) { doctest.Settings(t, "loadgen", newRootCommand()) }

package frontendcmd

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gpulet/gpulet/frontend/internal/exchange"
	"github.com/gpulet/gpulet/shared/doctest"
)

func TestMetricsAreInTheManual(t *testing.T) {
	doctest.Metrics(t, "frontend", func(reg prometheus.Registerer) {
		registerSystem(reg, nil, nil)
		exchange.NewMetrics(reg)
	})
}

func TestSettingsAreInTheManual(t *testing.T) { doctest.Settings(t, "frontend", New()) }

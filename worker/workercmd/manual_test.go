package workercmd

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gpulet/gpulet/shared/doctest"
	"github.com/gpulet/gpulet/worker/internal/agent"
)

func TestMetricsAreInTheManual(t *testing.T) {
	doctest.Metrics(t, "worker", func(reg prometheus.Registerer) {
		agent.New(agent.Config{Host: "h"}, nil, reg)
	})
}

func TestSettingsAreInTheManual(t *testing.T) { doctest.Settings(t, "worker", newRootCommand()) }

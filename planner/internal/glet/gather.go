package glet

import "strings"

// gatherMs is what glet adds to a batch for concatenating its requests: measured by batch for two
// input sizes, times constants from its scheduler; fixed for small inputs. Source of the figures:
// github.com/casys-kaist/glet, resource/3_224_224.txt and 3_300_300.txt.
func gatherMs(model string, batch int) float64 {
	switch {
	case strings.HasPrefix(model, "lenet"):
		return 0.4
	case model == "bert":
		return 1
	case model == "ssd-mobilenetv1":
		return 2.5 * concat300[batch-1]
	}
	return 1.9 * concat224[batch-1]
}

var concat224 = [MaxBatch]float64{
	0.242238, 0.471533, 0.709178, 0.936802, 1.16429, 1.39987, 1.63019, 1.86854, 2.09573, 3.24429, 3.5235, 3.81946, 4.12412,
	4.43927, 4.76328, 5.08131, 5.36428, 5.67372, 5.97868, 6.30566, 6.62268, 6.98623, 7.34849, 7.7165, 8.07778, 8.49104,
	8.87647, 9.3028, 9.71841, 10.151, 10.5432, 10.9889,
}

var concat300 = [MaxBatch]float64{
	0.416397, 0.829553, 1.24381, 1.62807, 2.06951, 3.11589, 3.69778, 4.19219, 4.73572, 5.36429, 6.03286, 6.61412, 7.4105,
	8.07447, 8.78007, 9.56877, 10.4459, 11.0697, 11.935, 12.6145, 13.3723, 14.199, 15.0854, 15.6656, 16.6006, 17.218,
	17.9952, 18.6669, 19.4454, 20.0511, 20.8952, 21.6965,
}

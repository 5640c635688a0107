// Infer-go sends handwritten digits to a running gpulet over the v2 protocol and prints what they
// are read as. It needs nothing but the standard library.
//
//	go run ./examples/infer-go -url http://127.0.0.1:8000 build/demo/digit.json
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
)

// response is the part of a v2 inference response that this program reads.
type response struct {
	Outputs []struct {
		Name  string    `json:"name"`
		Shape []int     `json:"shape"`
		Data  []float64 `json:"data"`
	} `json:"outputs"`
	Error string `json:"error"`
}

func main() {
	url := flag.String("url", "http://127.0.0.1:8000", "the frontend")
	model := flag.String("model", "lenet", "the model")
	flag.Parse()
	for _, file := range flag.Args() {
		if err := infer(*url, *model, file); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

// infer posts the request in file and prints the largest element of the first output.
func infer(url, model, file string) error {
	request, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	resp, err := http.Post(url+"/v2/models/"+model+"/infer", "application/json", bytes.NewReader(request))
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end
	var answer response
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return fmt.Errorf("%s: HTTP status %s: %w", file, resp.Status, err)
	}
	if answer.Error != "" {
		return fmt.Errorf("%s: HTTP status %s: %s", file, resp.Status, answer.Error)
	}
	scores := answer.Outputs[0].Data
	best := 0
	for i, v := range scores {
		if v > scores[best] {
			best = i
		}
	}
	fmt.Printf("%s: %s says %d\n", file, model, best)
	return nil
}

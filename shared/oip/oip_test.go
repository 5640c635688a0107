package oip_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/gpulet/gpulet/shared/oip"
)

// contract is what clients that were made of the protocol's own files expect: by message its fields with
// their numbers and types. Fields may be added, never changed.
const contract = `
ServerLiveRequest
ServerLiveResponse live=1:bool
ServerReadyRequest
ServerReadyResponse ready=1:bool
ModelReadyRequest name=1:string version=2:string
ModelReadyResponse ready=1:bool
ServerMetadataRequest
ServerMetadataResponse name=1:string version=2:string extensions=3:[string]
ModelMetadataRequest name=1:string version=2:string
ModelMetadataResponse name=1:string versions=2:[string] platform=3:string inputs=4:[TensorMetadata] outputs=5:[TensorMetadata] properties=6:{string}
ModelMetadataResponse.TensorMetadata name=1:string datatype=2:string shape=3:[int64]
ModelInferRequest model_name=1:string model_version=2:string id=3:string parameters=4:{InferParameter} inputs=5:[InferInputTensor] outputs=6:[InferRequestedOutputTensor] raw_input_contents=7:[bytes]
ModelInferRequest.InferInputTensor name=1:string datatype=2:string shape=3:[int64] parameters=4:{InferParameter} contents=5:InferTensorContents
ModelInferRequest.InferRequestedOutputTensor name=1:string parameters=2:{InferParameter}
ModelInferResponse model_name=1:string model_version=2:string id=3:string parameters=4:{InferParameter} outputs=5:[InferOutputTensor] raw_output_contents=6:[bytes]
ModelInferResponse.InferOutputTensor name=1:string datatype=2:string shape=3:[int64] parameters=4:{InferParameter} contents=5:InferTensorContents
ModelStreamInferResponse error_message=1:string infer_response=2:ModelInferResponse
InferParameter bool_param=1:bool int64_param=2:int64 string_param=3:string double_param=4:double uint64_param=5:uint64
InferTensorContents bool_contents=1:[bool] int_contents=2:[int32] int64_contents=3:[int64] uint_contents=4:[uint32] uint64_contents=5:[uint64] fp32_contents=6:[float] fp64_contents=7:[double] bytes_contents=8:[bytes]
RepositoryIndexRequest repository_name=1:string ready=2:bool
RepositoryIndexResponse models=1:[ModelIndex]
RepositoryIndexResponse.ModelIndex name=1:string version=2:string state=3:string reason=4:string
`

func TestMessagesAreThoseOfTheProtocol(t *testing.T) {
	var got strings.Builder
	got.WriteString("\n")
	describe(&got, oip.File_shared_oip_oip_proto.Messages(), "")
	if diff := cmp.Diff(contract, got.String()); diff != "" {
		t.Error(diff)
	}
	if name := oip.GRPCInferenceService_ServiceDesc.ServiceName; name != "inference.GRPCInferenceService" {
		t.Errorf("service %s: expected inference.GRPCInferenceService", name)
	}
}

func describe(b *strings.Builder, messages protoreflect.MessageDescriptors, outer string) {
	for i := range messages.Len() {
		m := messages.Get(i)
		if m.IsMapEntry() {
			continue
		}
		b.WriteString(outer + string(m.Name()))
		for j := range m.Fields().Len() {
			f := m.Fields().Get(j)
			fmt.Fprintf(b, " %s=%d:%s", f.Name(), f.Number(), kind(f))
		}
		b.WriteString("\n")
		describe(b, m.Messages(), outer+string(m.Name())+".")
	}
}

// kind names a field's type: [of a list], {of a map's values}.
func kind(f protoreflect.FieldDescriptor) string {
	switch {
	case f.IsMap():
		return "{" + kind(f.MapValue()) + "}"
	case f.IsList():
		return "[" + scalar(f) + "]"
	}
	return scalar(f)
}

func scalar(f protoreflect.FieldDescriptor) string {
	if f.Message() != nil {
		return string(f.Message().Name())
	}
	return f.Kind().String()
}

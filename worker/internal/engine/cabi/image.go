package cabi

/*
#include <stddef.h>
#include "engine.h"

#cgo noescape decode_image
#cgo nocallback decode_image

static int can_decode(const gle_api *a) {
	return (a->features & GLE_HAS_JPEG) != 0 &&
		a->size >= offsetof(gle_api, decode_image) + sizeof a->decode_image && a->decode_image != NULL;
}

// The struct is filled here, so that Go's pointers cross as arguments, which need no pinning.
static int decode_image(const gle_api *a, const void *data, size_t n, void *pixels, size_t n_pixels,
		int32_t channels, int32_t height, int32_t width, char *e, size_t cap) {
	const gle_image image = {
		.size = sizeof image, .channels = channels, .height = height, .width = width,
		.data = data, .n_bytes = n, .pixels = pixels, .n_pixels = n_pixels,
	};
	return a->decode_image(&image, e, cap);
}
*/
import "C"

import (
	"fmt"
	"unsafe"
)

// HasJPEG reports whether DecodeJPEG works.
func (l *Library) HasJPEG() bool { return C.can_decode(l.api) != 0 }

// DecodeJPEG decodes data into pixels, which holds channels planes of height x width bytes.
func (l *Library) DecodeJPEG(pixels, data []byte, channels, height, width int) error {
	if !l.HasJPEG() {
		return &Error{Status: StatusUnsupported, Msg: fmt.Sprintf("%s decodes no JPEGs: it was built without libjpeg", l.path)}
	}
	var e errBuf
	return e.check(C.decode_image(l.api,
		unsafe.Pointer(unsafe.SliceData(data)), C.size_t(len(data)),
		unsafe.Pointer(unsafe.SliceData(pixels)), C.size_t(len(pixels)),
		C.int32_t(channels), C.int32_t(height), C.int32_t(width), e.ptr(), errCap))
}

// Package images turns JPEGs and PNGs into pictures as models take them: planes of bytes, of the
// model's size, colours in the order red, green, blue.
//
// JPEGs are decoded by the engine's libjpeg-turbo where it has one; PNGs, and JPEGs elsewhere, by
// Go's standard library. Which one it was shows in nothing but time, and in a colour by a few parts
// of 255: the two round differently, and Go does not interpolate chroma.
//
// What cannot be decoded safely is refused by its header, before memory is taken for it. EXIF
// orientation, colour profiles and transparency are ignored.
package images

import (
	"fmt"

	"github.com/gpulet/gpulet/shared/wire"
)

// Shape is a picture as a model takes it: Channels planes of Height x Width bytes, one after the
// other. 3 channels are red, green and blue; 1 is grey (ITU-R BT.601 luma).
type Shape struct{ Channels, Height, Width int }

// Bytes is the size of the picture.
func (s Shape) Bytes() int { return s.Channels * s.Height * s.Width }

// JPEG decodes JPEGs natively, as an engine does: data into pixels, which holds channels planes of
// height x width bytes. It is called for JPEGs whose header has passed, by several goroutines.
type JPEG interface {
	DecodeJPEG(pixels, data []byte, channels, height, width int) error
}

// Decoder decodes images. It holds no state: several goroutines may use it.
type Decoder struct{ native JPEG }

// New returns a Decoder that leaves JPEGs to native; nil: to Go.
func New(native JPEG) *Decoder { return &Decoder{native} }

// Decode decodes data, whose type is wire.TypeJPEG or wire.TypePNG, into pixels of shape to, which
// are to.Bytes() long. A picture of another size is resized, whatever its proportions: bilinearly,
// with every source pixel counted where it shrinks. The error is for the client; pixels then hold
// anything.
func (d *Decoder) Decode(pixels, data []byte, contentType string, to Shape) error {
	if to.Channels != 1 && to.Channels != 3 || to.Height < 1 || to.Width < 1 || len(pixels) != to.Bytes() {
		return fmt.Errorf("a picture %+v in %d bytes: expected 1 or 3 channels that fit", to, len(pixels))
	}
	if err := d.decode(pixels, data, contentType, to); err != nil {
		return fmt.Errorf("%s body: %w", contentType, err)
	}
	return nil
}

func (d *Decoder) decode(pixels, data []byte, contentType string, to Shape) error {
	if err := checkHeader(data, contentType); err != nil {
		return err
	}
	if contentType == wire.TypeJPEG && d.native != nil {
		return d.native.DecodeJPEG(pixels, data, to.Channels, to.Height, to.Width)
	}
	source, err := open(data, contentType, to.Channels)
	if err != nil {
		return err
	}
	resize(pixels, to, source)
	return nil
}

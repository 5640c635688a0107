package images

import (
	"bytes"
	"fmt"
	"image"
	"image/color"
	"image/jpeg"
	"image/png"

	"github.com/gpulet/gpulet/shared/wire"
)

// source is a decoded picture, read row by row.
type source struct {
	width, height int
	// row writes row y into to, its channels side by side. Each row is read once, from the top.
	row func(y int, to []byte)
}

// open decodes data with Go's standard library into rows of 1 or 3 channels.
func open(data []byte, contentType string, channels int) (source, error) {
	decode := png.Decode
	if contentType == wire.TypeJPEG {
		decode = jpeg.Decode
	}
	img, err := decode(bytes.NewReader(data))
	if err != nil {
		return source{}, err
	}
	size := img.Bounds().Size()
	colours, err := rowsOf(img)
	if err != nil {
		return source{}, err
	}
	s := source{width: size.X, height: size.Y, row: colours}
	switch {
	case channels == 1:
		s.row = luma(img, colours)
	case isGrey(img):
		s.row = spread(img)
	}
	return s, nil
}

func isGrey(img image.Image) bool {
	switch img.(type) {
	case *image.Gray, *image.Gray16:
		return true
	}
	return false
}

// greyRows reads the rows of what has a plane of brightness; nil for anything else.
func greyRows(img image.Image) func(y int, to []byte) {
	switch img := img.(type) {
	case *image.YCbCr:
		return func(y int, to []byte) { copy(to, img.Y[y*img.YStride:]) }
	case *image.Gray:
		return func(y int, to []byte) { copy(to, img.Pix[y*img.Stride:]) }
	case *image.Gray16:
		return func(y int, to []byte) { every(to, img.Pix[y*img.Stride:], 2) }
	}
	return nil
}

// every takes the first of each step bytes: of 16-bit samples the high byte.
func every(to, from []byte, step int) {
	for i := range to {
		to[i] = from[i*step]
	}
}

// luma reads rows of one channel.
func luma(img image.Image, colours func(int, []byte)) func(y int, to []byte) {
	if grey := greyRows(img); grey != nil {
		return grey
	}
	var rgb []byte
	return func(y int, to []byte) {
		if rgb == nil {
			rgb = make([]byte, 3*len(to))
		}
		colours(y, rgb)
		for x := range to {
			r, g, b := uint32(rgb[3*x]), uint32(rgb[3*x+1]), uint32(rgb[3*x+2])
			to[x] = byte((19595*r + 38470*g + 7471*b + 1<<15) >> 16) // 0.299, 0.587, 0.114 (BT.601)
		}
	}
}

// spread reads rows of three channels from a grey picture.
func spread(img image.Image) func(y int, to []byte) {
	read := greyRows(img)
	grey := make([]byte, img.Bounds().Dx())
	return func(y int, to []byte) {
		read(y, grey)
		for x, v := range grey {
			to[3*x], to[3*x+1], to[3*x+2] = v, v, v
		}
	}
}

// rowsOf reads rows of red, green and blue from what the standard decoders make. Grey pictures have
// none: see spread. Transparency is ignored, so of colours that are not multiplied by it the bytes
// are as the file has them; those that are multiplied come from files without any.
func rowsOf(img image.Image) (func(y int, to []byte), error) {
	switch img := img.(type) {
	case *image.Gray, *image.Gray16:
		return nil, nil
	case *image.YCbCr:
		return func(y int, to []byte) { ycbcrRow(img, y, to) }, nil
	case *image.RGBA:
		return packedRows(img.Pix, img.Stride, 1), nil
	case *image.NRGBA:
		return packedRows(img.Pix, img.Stride, 1), nil
	case *image.RGBA64:
		return packedRows(img.Pix, img.Stride, 2), nil
	case *image.NRGBA64:
		return packedRows(img.Pix, img.Stride, 2), nil
	case *image.Paletted:
		return palettedRows(img), nil
	}
	return nil, fmt.Errorf("a picture of colours %T: expected grey, YCbCr, RGB or a palette", img)
}

func ycbcrRow(img *image.YCbCr, y int, to []byte) {
	luma := img.Y[y*img.YStride:]
	chroma := img.COffset(0, y)
	half := 0 // chroma has a sample for every, every second or every fourth pixel
	switch img.SubsampleRatio {
	case image.YCbCrSubsampleRatio422, image.YCbCrSubsampleRatio420:
		half = 1
	case image.YCbCrSubsampleRatio411, image.YCbCrSubsampleRatio410:
		half = 2
	}
	cb, cr := img.Cb[chroma:], img.Cr[chroma:]
	for x := range len(to) / 3 {
		to[3*x], to[3*x+1], to[3*x+2] = color.YCbCrToRGB(luma[x], cb[x>>half], cr[x>>half])
	}
}

// packedRows reads red, green, blue and a fourth sample side by side, each of so many bytes.
func packedRows(pix []byte, stride, bytes int) func(y int, to []byte) {
	return func(y int, to []byte) {
		from := pix[y*stride:]
		for x := range len(to) / 3 {
			at := 4 * x * bytes
			to[3*x], to[3*x+1], to[3*x+2] = from[at], from[at+bytes], from[at+2*bytes]
		}
	}
}

func palettedRows(img *image.Paletted) func(y int, to []byte) {
	var colours [256][3]byte // an index beyond the palette is black
	for i, c := range img.Palette {
		n := color.NRGBAModel.Convert(c).(color.NRGBA)
		colours[i] = [3]byte{n.R, n.G, n.B}
	}
	return func(y int, to []byte) {
		from := img.Pix[y*img.Stride:]
		for x := range len(to) / 3 {
			copy(to[3*x:], colours[from[x]][:])
		}
	}
}

package images

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/gpulet/gpulet/shared/wire"
)

// Limits of what is decoded. A body of 8 MiB may announce, and really contain, gigabytes of pixels.
const (
	// MaxPixels is width x height: 4096 x 4096. Decoding takes at most 8 bytes per pixel.
	MaxPixels = 1 << 24
	// maxScans bounds how often a progressive JPEG goes over its pixels; encoders write about 10.
	maxScans = 100
)

var (
	pngSignature  = []byte("\x89PNG\r\n\x1a\n")
	jpegSignature = []byte{0xff, 0xd8, 0xff}
	startOfScan   = []byte{0xff, 0xda}
)

// checkHeader refuses what is not of the type, too large, or of a kind that is not decoded.
func checkHeader(data []byte, contentType string) error {
	isJPEG, isPNG := bytes.HasPrefix(data, jpegSignature), bytes.HasPrefix(data, pngSignature)
	switch contentType {
	case wire.TypeJPEG:
		if isJPEG {
			return checkJPEG(data)
		}
	case wire.TypePNG:
		if isPNG {
			return checkPNG(data)
		}
	default:
		return fmt.Errorf("expected %s or %s", wire.TypeJPEG, wire.TypePNG)
	}
	found := fmt.Sprintf("%d bytes that start with %q", len(data), data[:min(len(data), 8)])
	switch {
	case isJPEG:
		found = "a JPEG"
	case isPNG:
		found = "a PNG"
	}
	return fmt.Errorf("found %s: expected %s", found, contentType)
}

func checkSize(width, height int) error {
	if width < 1 || height < 1 {
		return fmt.Errorf("%d x %d pixels: expected at least 1 x 1", width, height)
	}
	if int64(width)*int64(height) > MaxPixels {
		return fmt.Errorf("%d x %d pixels: expected at most %d in all", width, height, MaxPixels)
	}
	return nil
}

// checkPNG reads the IHDR chunk, which comes first.
func checkPNG(data []byte) error {
	const end = 8 + 8 + 13 // signature, length and name of the chunk, its data
	if len(data) < end || string(data[12:16]) != "IHDR" {
		return errors.New("no IHDR chunk: expected one at the start")
	}
	width, height := binary.BigEndian.Uint32(data[16:]), binary.BigEndian.Uint32(data[20:])
	return checkSize(int(width), int(height))
}

// Markers of a JPEG (ITU-T T.81, table B.1).
const (
	sof0 = 0xc0 // baseline
	sof2 = 0xc2 // progressive
	dht  = 0xc4
	jpg  = 0xc8
	dac  = 0xcc
	sof  = 0xcf // the last of them
	rst0 = 0xd0
	eoi  = 0xd9
	sos  = 0xda
	tem  = 0x01
)

// checkJPEG walks over the segments to the frame header, which says how large the picture is.
func checkJPEG(data []byte) error {
	// In the data of a scan 0xff is followed by 0 or a restart marker, so every hit is a scan, of
	// the picture or of a thumbnail in its metadata.
	if n := bytes.Count(data, startOfScan); n > maxScans {
		return fmt.Errorf("%d scans: expected at most %d", n, maxScans)
	}
	for rest := data[2:]; ; {
		at := bytes.IndexByte(rest, 0xff)
		for at >= 0 && at < len(rest) && rest[at] == 0xff {
			at++ // fill bytes
		}
		if at < 0 || at >= len(rest) {
			return errors.New("ends before its frame header")
		}
		marker := rest[at]
		rest = rest[at+1:]
		switch {
		case marker == 0 || marker == tem || marker >= rst0 && marker < eoi:
			continue // no segment
		case marker == sos || marker == eoi:
			return errors.New("no frame header before its first scan")
		case len(rest) < 2:
			return errors.New("ends before its frame header")
		}
		length := int(binary.BigEndian.Uint16(rest))
		if length < 2 || length > len(rest) {
			return fmt.Errorf("a segment of %d bytes: expected 2 to %d", length, len(rest))
		}
		if isFrame(marker) {
			return checkFrame(marker, rest[2:length])
		}
		rest = rest[length:]
	}
}

func isFrame(marker byte) bool {
	return marker >= sof0 && marker <= sof && marker != dht && marker != jpg && marker != dac
}

// checkFrame reads precision, height, width and the number of components.
func checkFrame(marker byte, frame []byte) error {
	if marker > sof2 {
		return fmt.Errorf("frame type SOF%d (lossless, hierarchical or arithmetic): expected baseline or progressive", marker-sof0)
	}
	if len(frame) < 6 {
		return fmt.Errorf("a frame header of %d bytes: expected at least 6", len(frame))
	}
	if frame[0] != 8 {
		return fmt.Errorf("%d bits per colour: expected 8", frame[0])
	}
	switch n := frame[5]; n {
	case 1, 3:
	case 4:
		return errors.New("4 components (CMYK): expected 1 (grey) or 3")
	default:
		return fmt.Errorf("%d components: expected 1 (grey) or 3", n)
	}
	return checkSize(int(binary.BigEndian.Uint16(frame[3:])), int(binary.BigEndian.Uint16(frame[1:])))
}

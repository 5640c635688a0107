// Images: JPEGs decoded and resized on the CPU, with libjpeg-turbo. Built only where jpeglib.h is
// (GLE_JPEG); elsewhere the worker decodes in Go.
#pragma once

#include "engine.h"

namespace gle {

// Fills image.pixels. Throws GLE_EINVAL for a JPEG that is broken, cut short, or of four
// components.
void decode_jpeg(const gle_image& image);

}  // namespace gle

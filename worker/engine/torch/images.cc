#include "images.h"

#ifdef GLE_JPEG

#include <csetjmp>
#include <cstddef>
#include <cstdio>
// jpeglib.h needs size_t and FILE.
#include <jerror.h>
#include <jpeglib.h>

#include <algorithm>
#include <string>
#include <vector>

#include "errors.h"
#include "resample.h"

namespace gle {
namespace {

// Everything that lives while a JPEG is decoded. libjpeg leaves on an error by longjmp, which runs
// no destructors: so whatever has one is in here, outside of the frames that are jumped over.
struct Decoder {
  jpeg_error_mgr errors;
  std::jmp_buf jump;
  char message[JMSG_LENGTH_MAX] = "";
  jpeg_decompress_struct jpeg;
  std::vector<uint8_t> rows;  // a ring of decoded rows

  Decoder();
  ~Decoder() {
    jpeg_destroy_decompress(&jpeg);
  }
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;
};

// Ends the decoding: back to the setjmp, with the message.
[[noreturn]] void leave(j_common_ptr jpeg) {
  auto* d = static_cast<Decoder*>(jpeg->client_data);
  jpeg->err->format_message(jpeg, d->message);
  std::longjmp(d->jump, 1);
}

// Takes warnings (level -1) for what they are: a picture with grey where the file was cut off
// would be answered as if nothing had been wrong. These three say nothing of the pixels.
void warn(j_common_ptr jpeg, int level) {
  if (level >= 0) return;
  switch (jpeg->err->msg_code) {
    case JWRN_ADOBE_XFORM:
    case JWRN_EXTRANEOUS_DATA:
    case JWRN_JFIF_MAJOR:
      return;
    default:
      leave(jpeg);
  }
}

void quiet(j_common_ptr) {}

Decoder::Decoder() {
  jpeg.err = jpeg_std_error(&errors);
  errors.error_exit = leave;
  errors.emit_message = warn;
  errors.output_message = quiet;
  jpeg.client_data = this;
  // It fails only when jpeglib.h is not of the library's own version, before it takes anything.
  if (setjmp(jump) != 0) throw Error(GLE_EUNSUPPORTED, message);
  jpeg_create_decompress(&jpeg);
}

// The most that the inverse DCT may shrink by while the picture stays twice as large as what is
// wanted: fewer pixels to compute, convert and resize. Nearer to the wanted size its coarser filter
// would show. The scales between have no SIMD code in libjpeg-turbo and are slower than none.
unsigned shrink(const jpeg_decompress_struct& jpeg, const gle_image& image) {
  for (const unsigned by : {8u, 4u, 2u}) {
    if (jpeg.image_width / by >= 2 * static_cast<unsigned>(image.width) &&
        jpeg.image_height / by >= 2 * static_cast<unsigned>(image.height)) {
      return by;
    }
  }
  return 1;
}

// Reads the header and starts decoding into the wanted colours. May jump.
void start(Decoder* d, const gle_image& image) {
  jpeg_mem_src(&d->jpeg, static_cast<const unsigned char*>(image.data), image.n_bytes);
  jpeg_read_header(&d->jpeg, TRUE);
  d->jpeg.out_color_space = image.channels == 1 ? JCS_GRAYSCALE : JCS_RGB;
  d->jpeg.scale_num = 1;
  d->jpeg.scale_denom = shrink(d->jpeg, image);
  jpeg_start_decompress(&d->jpeg);
}

// Decodes rows until `upto` of them have been. Row y is kept in slot y modulo `slots`. May jump.
void read_rows(Decoder* d, unsigned upto, unsigned slots) {
  const size_t stride = static_cast<size_t>(d->jpeg.output_width) * d->jpeg.output_components;
  while (d->jpeg.output_scanline < upto) {
    JSAMPROW row = d->rows.data() + stride * (d->jpeg.output_scanline % slots);
    jpeg_read_scanlines(&d->jpeg, &row, 1);
  }
}

// Each step that may jump has a setjmp around it and nothing with a destructor inside.
template <class F>
void guarded(Decoder* d, F&& step) {
  if (setjmp(d->jump) != 0) throw Error(GLE_EINVAL, d->message);
  step();
}

void check(const gle_image& image) {
  if ((image.channels != 1 && image.channels != 3) || image.height < 1 || image.width < 1 ||
      image.data == nullptr || image.pixels == nullptr ||
      image.n_pixels != static_cast<uint64_t>(image.channels) * image.height * image.width) {
    throw Error(GLE_EINVAL, "a picture of " + std::to_string(image.channels) + "x" +
                                std::to_string(image.height) + "x" + std::to_string(image.width) +
                                " in " + std::to_string(image.n_pixels) +
                                " bytes: expected 1 or 3 channels that fit");
  }
}

}  // namespace

void decode_jpeg(const gle_image& image) {
  check(image);
  Decoder d;
  guarded(&d, [&] { start(&d, image); });
  const int in_width = static_cast<int>(d.jpeg.output_width);
  const int in_height = static_cast<int>(d.jpeg.output_height);
  const double by = d.jpeg.scale_denom;
  Resampler resampler(image.channels, {in_width, in_height},
                      {d.jpeg.image_width / by, d.jpeg.image_height / by},
                      {image.width, image.height});
  const int slots = resampler.rows_needed();
  d.rows.resize(static_cast<size_t>(slots) * in_width * image.channels);
  for (int y = 0; y < image.height; y++) {
    const unsigned upto = resampler.end_row(y);
    guarded(&d, [&] { read_rows(&d, upto, slots); });
    resampler.row(y, d.rows.data(), image.pixels);
  }
  // Rows beyond the last that is needed are decoded too: a file that ends early is broken.
  guarded(&d, [&] {
    read_rows(&d, in_height, slots);
    jpeg_finish_decompress(&d.jpeg);
  });
}

}  // namespace gle

#endif  // GLE_JPEG

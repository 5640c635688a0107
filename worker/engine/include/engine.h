/* engine.h: the C ABI between the worker and an engine that runs models.
 *
 * An engine is a shared library with one exported symbol, gle_get_api, which returns a table of
 * functions. It is opened with dlopen and never closed: neither LibTorch nor CUDA survive dlclose.
 *
 * Versions. gle_get_api is asked for an ABI version and returns NULL when it does not speak it.
 * Within a version, structs and the table only grow at their end. Every struct that crosses
 * starts with `size`: its filler's sizeof. A reader looks at no field beyond that size.
 *
 * Errors. Every call that can fail returns a gle_status and, unless that is GLE_OK, writes a
 * NUL-terminated message into the caller's `err` (cut at `err_cap` bytes; err may be NULL when
 * err_cap is 0). There is no "last error" to ask for later: the caller's thread may have changed.
 * No C++ exception crosses.
 *
 * Memory. Whatever a caller passes belongs to the caller and is only read, and only during the
 * call. Whatever an engine hands out belongs to the engine until the matching free function.
 *
 * Threads. Functions may be called from any thread. Per model, calls are serialised by the
 * engine, but for stage, which waits for nothing that runs, and for as much of prepare as can be
 * done beside a run; different models run at the same time.
 * LibTorch keeps one team of worker threads for every thread that runs models, so a model is best
 * run by one thread all its life.
 */
#ifndef GPULET_ENGINE_H
#define GPULET_ENGINE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define GLE_ABI_VERSION 1
#define GLE_MAX_DIMS 8
#define GLE_NAME_CAP 64

typedef enum gle_status {
  GLE_OK = 0,
  GLE_EINVAL,       /* the call was wrong: a size, shape, dtype or byte count */
  GLE_ELOAD,        /* the archive is missing, corrupt or cannot be used */
  GLE_ERUN,         /* the model failed on these inputs; it stays usable */
  GLE_EOOM,         /* out of memory, of the host or the device */
  GLE_EDEVICE,      /* the device context is broken: the process must end */
  GLE_EUNSUPPORTED, /* this engine, or this build of it, cannot do that */
} gle_status;

/* Element types. The values are those of the worker's own tensor.DType. */
typedef enum gle_dtype {
  GLE_NONE = 0,
  GLE_FP32,
  GLE_FP16,
  GLE_BF16,
  GLE_FP64,
  GLE_UINT8,
  GLE_INT8,
  GLE_INT16,
  GLE_INT32,
  GLE_INT64,
  GLE_BOOL,
} gle_dtype;

/* gle_load_options.flags: how a TorchScript archive is treated. Other engines ignore them. */
enum {
  GLE_FREEZE = 1 << 0,        /* inline weights as constants and fold what can be folded */
  GLE_OPTIMIZE = 1 << 1,      /* freeze, then LibTorch's optimize_for_inference */
  GLE_CHANNELS_LAST = 1 << 2, /* keep 4-d weights and inputs in NHWC order */
  GLE_PAD = 1 << 3,           /* pad to prepared batches even where no graph was captured */
  GLE_EAGER = 1 << 4,         /* capture no graphs: to measure what they bring */
};

/* gle_api.features */
enum {
  GLE_HAS_CUDA = 1 << 0, /* built for CUDA; says nothing of a GPU being present */
  GLE_HAS_AOTI = 1 << 1, /* loads .pt2 packages (AOTInductor) */
  GLE_HAS_JPEG = 1 << 2, /* decode_image is there */
};

/* Process-wide settings, given once before the first load. */
typedef struct gle_config {
  uint32_t size;
  int32_t intra_threads; /* threads of one operator on a CPU; 0 leaves the library's default */
  int32_t inter_threads; /* threads for operators side by side; 0 leaves the default */
  int32_t jit_profiling; /* 0: interpret the graph as loaded, so that latency stays steady when
                            the batch size changes; 1: LibTorch's profiling executor, which
                            spends the first runs of every shape on specialising */
} gle_config;

typedef struct gle_device_info {
  uint32_t size;
  int32_t sm_count;             /* as MPS lets this process see it; 0 on a CPU */
  uint64_t mem_free, mem_total; /* bytes of the device; 0 when unknown */
  char name[GLE_NAME_CAP];      /* product name; "cpu" */
} gle_device_info;

/* What the caller knows of one input of a model. */
typedef struct gle_input_spec {
  int32_t dtype;      /* what the model takes */
  int32_t preprocess; /* 1: another dtype may come and becomes y = (x * scale - mean) / std */
  float scale;
  int32_t n_channels; /* length of mean and std; 0: mean 0, std 1; 1: the same for all channels */
  const float* mean;  /* per channel: the dimension after the batch */
  const float* std;
} gle_input_spec;

typedef struct gle_load_options {
  uint32_t size;
  uint32_t flags;
  const char* path;             /* the archive */
  const char* device;           /* "cpu" or "cuda:N" */
  int32_t precision;            /* GLE_NONE: as stored; else floating weights are converted */
  int32_t n_inputs;             /* 0: not known, nothing is preprocessed */
  const gle_input_spec* inputs; /* n_inputs of them */
  int32_t n_outputs;            /* 0: not known, outputs come back as the model makes them */
  int32_t reserved;
  const int32_t* output_dtypes; /* n_outputs of them: floating outputs are converted to these */
} gle_load_options;

typedef struct gle_model_info {
  uint32_t size;
  int32_t n_graphs;      /* captured CUDA graphs */
  uint64_t weight_bytes; /* parameters and buffers, in the precision they are kept in */
  uint64_t device_bytes; /* memory that loading and preparing took from the device; on a CPU
                            the weights and the engine's own buffers */
  int32_t copies_inputs; /* 1: the model writes into an input, so inputs are always copied */
  int32_t reserved;
} gle_model_info;

typedef struct gle_segment {
  const void* data;
  uint64_t n_bytes;
} gle_segment;

/* One input of a batch: the concatenation of its segments along the first dimension, one segment
 * per request, each pointing straight into that request's own buffer. One segment costs no copy
 * on a CPU; several cost one memcpy each. */
typedef struct gle_input {
  int32_t dtype;
  int32_t n_dims;
  int64_t shape[GLE_MAX_DIMS]; /* of the whole batch; shape[0] is its number of samples */
  const gle_segment* segments;
  int64_t n_segments;
} gle_input;

typedef struct gle_output {
  int32_t dtype;
  int32_t n_dims;
  int64_t shape[GLE_MAX_DIMS]; /* of the samples that were asked for, without padding */
  const void* data;            /* host memory, dense, row-major */
  uint64_t n_bytes;
  char name[GLE_NAME_CAP]; /* position or key path: "0", "1.boxes" */
} gle_output;

typedef struct gle_timing {
  uint64_t gather_ns; /* segments to one (pinned) buffer */
  uint64_t run_ns;    /* the model; on CUDA until it was launched */
  uint64_t fetch_ns;  /* outputs to the host; on CUDA this waits for the model */
} gle_timing;

/* The outputs of one run. Fields are the engine's and only read by the caller. */
typedef struct gle_result {
  uint32_t size;
  int32_t n_outputs;
  const gle_output* outputs;
  gle_timing timing;
} gle_result;

/* A JPEG and the picture that is made of it. */
typedef struct gle_image {
  uint32_t size;
  int32_t channels;      /* 3: red, green, blue; 1: grey */
  int32_t height, width; /* of the picture, to which the JPEG is resized */
  const void* data;      /* the JPEG */
  uint64_t n_bytes;
  uint8_t* pixels;   /* channels x height x width, filled on GLE_OK; anything is in it otherwise */
  uint64_t n_pixels; /* bytes of pixels */
} gle_image;

typedef struct gle_model gle_model; /* opaque */
typedef struct gle_staged
    gle_staged; /* opaque: the inputs of a batch, on their way to the device */

typedef struct gle_api {
  uint32_t size;        /* sizeof(gle_api) when the engine was built */
  uint32_t abi_version; /* what was asked for */
  const char* engine;   /* "torch", "ref"; lives as long as the library */
  const char* version;  /* "libtorch 1.13.1" */
  uint32_t features;
  uint32_t reserved;

  /* Settings of the process. Call once, before load, from any thread. */
  int (*init)(const gle_config*, char* err, size_t err_cap);

  /* Fills *info (whose size the caller has set). Any thread, any time. */
  int (*device_info)(const char* device, gle_device_info* info, char* err, size_t err_cap);

  /* Opens a library of custom operators that archives need (torchvision's nms, say). Call before
   * load. */
  int (*load_operators)(const char* path, char* err, size_t err_cap);

  /* Loads an archive. On GLE_OK *model is the caller's until unload. Any thread; other models may
   * run meanwhile. */
  int (*load)(const gle_load_options*, gle_model** model, char* err, size_t err_cap);

  /* Frees a model. It must not be running, and the handle is dead afterwards; its results stay
   * valid. NULL is ignored. */
  void (*unload)(gle_model*);

  /* Fills *info (whose size the caller has set). */
  int (*model_info)(gle_model*, gle_model_info* info, char* err, size_t err_cap);

  /* Makes batches of exactly these shapes ready: runs them once and, on a GPU, captures a CUDA
   * graph. Afterwards smaller batches whose other dimensions and dtypes agree are padded with
   * zero samples up to the next prepared batch (on a CPU only with GLE_PAD).
   * GLE_EUNSUPPORTED: the model ran, but cannot be captured; it goes on serving eagerly. */
  int (*prepare)(gle_model*, const gle_input* inputs, int32_t n_inputs, char* err, size_t err_cap);

  /* Runs one batch and waits for it. On GLE_OK *result is the caller's until result_free. */
  int (*run)(gle_model*, const gle_input* inputs, int32_t n_inputs, gle_result** result, char* err,
             size_t err_cap);

  /* Frees a result, on any thread, also after its model was unloaded. NULL is ignored. */
  void (*result_free)(gle_result*);

  /* The functions below were added later: an engine whose table ends here has none of them. */

  /* Gathers a batch and starts copying it to the device, beside whatever the model runs now, so
   * that run_staged finds it there. Any number may be staged. The memory of the inputs' segments
   * must stay as it is until run_staged has returned or the batch is freed. On GLE_OK *staged is
   * the caller's until staged_free. */
  int (*stage)(gle_model*, const gle_input* inputs, int32_t n_inputs, gle_staged** staged,
               char* err, size_t err_cap);

  /* Runs a staged batch, once, as run does; batches may be run in any order. The batch must be of
   * this model. */
  int (*run_staged)(gle_model*, gle_staged*, gle_result** result, char* err, size_t err_cap);

  /* Frees a staged batch, run or not, on any thread, also after its model was unloaded. It must
   * not be running. NULL is ignored. */
  void (*staged_free)(gle_staged*);

  /* Decodes a JPEG on the CPU. Any thread, several at once; it has nothing to do with models and
   * devices. The caller has looked at the JPEG's header: how large it may be is the caller's
   * business. Only with GLE_HAS_JPEG, else NULL.
   * GLE_EINVAL: the JPEG is broken, or not grey, YCbCr or RGB. */
  int (*decode_image)(const gle_image*, char* err, size_t err_cap);
} gle_api;

typedef const gle_api* (*gle_get_api_fn)(uint32_t abi_version);

#define GLE_EXPORT __attribute__((visibility("default")))

/* The only exported symbol. Returns NULL for an ABI version that this engine does not speak. The
 * table lives as long as the library. */
GLE_EXPORT const gle_api* gle_get_api(uint32_t abi_version);

#ifdef __cplusplus
}
#endif
#endif /* GPULET_ENGINE_H */

/* ref.c: the reference engine. The C ABI of engine.h in plain C, without LibTorch, for tests and
 * as the shortest complete example of an engine.
 *
 * A model is a text file, one statement a line, # starts a comment:
 *
 *   gpulet-ref 1                        first line: format and version
 *   input  NAME DTYPE                   inputs, in the order they are passed
 *   affine NAME DTYPE BIAS [SCALE IN].. output = BIAS + SCALE * IN + ..., element by element
 *   rowsum NAME DTYPE IN                output of shape [batch]: the sum over each sample
 *   copy   NAME IN                      output = the bytes of IN, whatever their dtype
 *   limit  IN VALUE                     a batch with an element above VALUE fails (GLE_ERUN)
 *   batch  N                            only batches of exactly N run, as in an archive that was
 *                                       traced with its batch size baked in
 *   memory N                            batches of more than N samples fail (GLE_EOOM)
 *   eager  N                            batches of exactly N cannot be captured (prepare returns
 *                                       GLE_EUNSUPPORTED); they run all the same
 *   fault  IN VALUE                     a batch with an element above VALUE breaks the device: it
 *                                       and every later call of the process fail (GLE_EDEVICE)
 *   crash  IN VALUE                     a batch with an element above VALUE brings the process
 *                                       down, as a fault in native code does
 *   hang   IN VALUE                     a batch with an element above VALUE never returns
 *   meet   N PATH                       preparing a batch of exactly N opens PATH, a FIFO, to write
 *                                       and then to read, and so waits twice for somebody who opens
 *                                       its other end
 *   brittle                             loading the model brings the process down
 *
 * Arithmetic is in double; FP16 and BF16 can be copied but not computed with.
 */
#include "engine.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_TENSORS 16 /* inputs, outputs and terms of an affine */
#define MAX_LIMITS 8
#define MAX_PREPARED 64
#define MAX_TOKENS (4 + 2 * MAX_TENSORS)
#define MAX_LINE 1024

typedef struct {
  char name[GLE_NAME_CAP];
  int32_t dtype;
  /* How another dtype becomes this one. */
  bool preprocess;
  float scale;
  int32_t n_channels;
  float *mean, *std;
} input_def;

typedef enum { OP_AFFINE, OP_ROWSUM, OP_COPY } op;

typedef struct {
  char name[GLE_NAME_CAP];
  op op;
  int32_t dtype;
  double bias;
  int n_terms;
  double scale[MAX_TENSORS];
  int input[MAX_TENSORS];
} output_def;

typedef struct {
  int input;
  double value;
} limit_def;

struct gle_model {
  pthread_mutex_t mu; /* guards prepared; the rest never changes after load */
  int n_inputs, n_outputs, n_limits, n_prepared;
  input_def inputs[MAX_TENSORS];
  output_def outputs[MAX_TENSORS];
  limit_def limits[MAX_LIMITS];
  int64_t prepared[MAX_PREPARED]; /* batch sizes, ascending */
  int64_t fixed_batch;            /* 0: any */
  int64_t most;                   /* samples that there is memory for; 0: any */
  int64_t uncapturable;           /* batch; 0: none */
  int64_t meeting;                /* batch; 0: none */
  char meeting_at[MAX_LINE];
  int n_faults, n_crashes, n_hangs;
  limit_def faults[MAX_LIMITS];
  limit_def hangs[MAX_LIMITS];
  limit_def crashes[MAX_LIMITS];
  bool pad;
};

/* An input as it is computed on: gathered, padded, in the model's own dtype. */
typedef struct {
  int32_t dtype;
  int32_t n_dims;
  int64_t shape[GLE_MAX_DIMS];
  int64_t count; /* elements */
  const void* data;
  void* owned; /* to free; NULL when data is the caller's */
} value;

typedef struct {
  gle_result public;
  gle_output views[MAX_TENSORS];
} result;

struct gle_staged {
  const gle_model* of;
  int n_values;
  value values[MAX_TENSORS]; /* not preprocessed */
  int64_t samples, batch;
  atomic_bool ran;
};

/* Set for good by a model's fault, as a GPU's context is lost for good. */
static atomic_bool device_failed;

/* ---- errors ---------------------------------------------------------------------------- */

typedef struct {
  char* text;
  size_t cap;
} errbuf;

__attribute__((format(printf, 3, 4))) static int fail(errbuf e, int status, const char* format,
                                                      ...) {
  if (e.text == NULL || e.cap == 0) return status;
  va_list args;
  va_start(args, format);
  vsnprintf(e.text, e.cap, format, args);
  va_end(args);
  return status;
}

/* ---- dtypes ---------------------------------------------------------------------------- */

static const struct {
  const char* name;
  int64_t size;
} dtypes[] = {
    [GLE_NONE] = {"", 0},       [GLE_FP32] = {"FP32", 4},   [GLE_FP16] = {"FP16", 2},
    [GLE_BF16] = {"BF16", 2},   [GLE_FP64] = {"FP64", 8},   [GLE_UINT8] = {"UINT8", 1},
    [GLE_INT8] = {"INT8", 1},   [GLE_INT16] = {"INT16", 2}, [GLE_INT32] = {"INT32", 4},
    [GLE_INT64] = {"INT64", 8}, [GLE_BOOL] = {"BOOL", 1},
};

static bool known(int32_t dtype) {
  return dtype > GLE_NONE && dtype <= GLE_BOOL;
}

static bool computable(int32_t dtype) {
  return known(dtype) && dtype != GLE_FP16 && dtype != GLE_BF16;
}

static int32_t parse_dtype(const char* name) {
  for (int32_t d = GLE_FP32; d <= GLE_BOOL; d++) {
    if (strcmp(dtypes[d].name, name) == 0) return d;
  }
  return GLE_NONE;
}

#define GET(type)                                                    \
  do {                                                               \
    type v;                                                          \
    memcpy(&v, (const char*)data + i * (int64_t)sizeof v, sizeof v); \
    return (double)v;                                                \
  } while (0)

/* Element i, which need not be aligned: segments lie anywhere in a message. */
static double get(int32_t dtype, const void* data, int64_t i) {
  switch (dtype) {
    case GLE_FP32:
      GET(float);
    case GLE_FP64:
      GET(double);
    case GLE_INT8:
      GET(int8_t);
    case GLE_INT16:
      GET(int16_t);
    case GLE_INT32:
      GET(int32_t);
    case GLE_INT64:
      GET(int64_t);
    default:
      GET(uint8_t); /* UINT8, BOOL */
  }
}

#define PUT(type)                                              \
  do {                                                         \
    type v = (type)x;                                          \
    memcpy((char*)data + i * (int64_t)sizeof v, &v, sizeof v); \
    return;                                                    \
  } while (0)

/* The nearest of lo..hi; NaN, which no integer can hold, becomes 0. */
static double clamp(double x, double lo, double hi) {
  if (isnan(x)) return 0;
  return x < lo ? lo : x > hi ? hi : x;
}

static void put(int32_t dtype, void* data, int64_t i, double x) {
  switch (dtype) {
    case GLE_FP32:
      PUT(float);
    case GLE_FP64:
      PUT(double);
    case GLE_BOOL:
      x = x != 0;
      PUT(uint8_t);
    case GLE_UINT8:
      x = clamp(x, 0, UINT8_MAX);
      PUT(uint8_t);
    case GLE_INT8:
      x = clamp(x, INT8_MIN, INT8_MAX);
      PUT(int8_t);
    case GLE_INT16:
      x = clamp(x, INT16_MIN, INT16_MAX);
      PUT(int16_t);
    case GLE_INT32:
      x = clamp(x, INT32_MIN, INT32_MAX);
      PUT(int32_t);
    /* The largest double below 2^63. */
    default:
      x = clamp(x, (double)INT64_MIN, 9223372036854774784.0);
      PUT(int64_t);
  }
}

/* ---- reading a model ------------------------------------------------------------------- */

typedef struct {
  const char* path;
  int line;
  char* tokens[MAX_TOKENS];
  int n;
  errbuf err;
} parser;

#define BAD(p, format, ...) \
  fail((p)->err, GLE_ELOAD, "%s:%d: " format, (p)->path, (p)->line, __VA_ARGS__)

static int split(parser* p, char* text) {
  p->n = 0;
  if (strlen(text) == MAX_LINE - 1) return BAD(p, "longer than %d bytes", MAX_LINE - 2);
  text[strcspn(text, "#\r\n")] = '\0';
  char* rest = NULL;
  for (char* t = strtok_r(text, " \t", &rest); t != NULL; t = strtok_r(NULL, " \t", &rest)) {
    if (p->n == MAX_TOKENS) return BAD(p, "more than %d words", MAX_TOKENS);
    p->tokens[p->n++] = t;
  }
  return GLE_OK;
}

static int read_name(parser* p, char* name, const char* token) {
  if (strlen(token) >= GLE_NAME_CAP) return BAD(p, "name \"%.20s...\" is too long", token);
  strcpy(name, token);
  return GLE_OK;
}

static int read_number(parser* p, double* x, const char* token) {
  char* end = NULL;
  *x = strtod(token, &end);
  if (*end != '\0' || end == token) return BAD(p, "\"%s\": expected a number", token);
  return GLE_OK;
}

static int read_input(parser* p, const gle_model* m, int* index, const char* token) {
  for (int i = 0; i < m->n_inputs; i++) {
    if (strcmp(m->inputs[i].name, token) == 0) {
      *index = i;
      return GLE_OK;
    }
  }
  return BAD(p, "no input is called \"%s\"", token);
}

static int read_dtype(parser* p, int32_t* dtype, const char* token) {
  *dtype = parse_dtype(token);
  return *dtype == GLE_NONE ? BAD(p, "\"%s\": expected a dtype such as FP32", token) : GLE_OK;
}

/* An input that arithmetic is done with. */
static int read_operand(parser* p, const gle_model* m, int* index, const char* token) {
  const int status = read_input(p, m, index, token);
  if (status != GLE_OK) return status;
  const int32_t dtype = m->inputs[*index].dtype;
  if (!computable(dtype)) return BAD(p, "no arithmetic on %s", dtypes[dtype].name);
  return GLE_OK;
}

static int parse_input(parser* p, gle_model* m) {
  if (p->n != 3) return BAD(p, "%d words: expected: input NAME DTYPE", p->n);
  if (m->n_inputs == MAX_TENSORS) return BAD(p, "more than %d inputs", MAX_TENSORS);
  input_def* in = &m->inputs[m->n_inputs];
  int status = read_name(p, in->name, p->tokens[1]);
  if (status == GLE_OK) status = read_dtype(p, &in->dtype, p->tokens[2]);
  if (status == GLE_OK) m->n_inputs++;
  return status;
}

static int parse_affine(parser* p, gle_model* m, output_def* out) {
  if (p->n < 6 || p->n % 2 != 0) {
    return BAD(p, "%d words: expected: affine NAME DTYPE BIAS SCALE INPUT ...", p->n);
  }
  int status = read_dtype(p, &out->dtype, p->tokens[2]);
  if (status == GLE_OK) status = read_number(p, &out->bias, p->tokens[3]);
  for (int t = 4; t < p->n && status == GLE_OK; t += 2, out->n_terms++) {
    if (out->n_terms == MAX_TENSORS) return BAD(p, "more than %d terms", MAX_TENSORS);
    status = read_number(p, &out->scale[out->n_terms], p->tokens[t]);
    if (status == GLE_OK) status = read_operand(p, m, &out->input[out->n_terms], p->tokens[t + 1]);
  }
  return status;
}

static int parse_rowsum(parser* p, gle_model* m, output_def* out) {
  if (p->n != 4) return BAD(p, "%d words: expected: rowsum NAME DTYPE INPUT", p->n);
  int status = read_dtype(p, &out->dtype, p->tokens[2]);
  if (status == GLE_OK) status = read_operand(p, m, &out->input[0], p->tokens[3]);
  return status;
}

static int parse_copy(parser* p, gle_model* m, output_def* out) {
  if (p->n != 3) return BAD(p, "%d words: expected: copy NAME INPUT", p->n);
  int status = read_input(p, m, &out->input[0], p->tokens[2]);
  if (status == GLE_OK) out->dtype = m->inputs[out->input[0]].dtype;
  return status;
}

static int parse_output(parser* p, gle_model* m, op kind) {
  if (m->n_outputs == MAX_TENSORS) return BAD(p, "more than %d outputs", MAX_TENSORS);
  output_def out = {.op = kind};
  int status = GLE_OK;
  if (p->n > 1) status = read_name(p, out.name, p->tokens[1]);
  if (status != GLE_OK) return status;
  switch (kind) {
    case OP_AFFINE:
      status = parse_affine(p, m, &out);
      break;
    case OP_ROWSUM:
      status = parse_rowsum(p, m, &out);
      break;
    case OP_COPY:
      status = parse_copy(p, m, &out);
      break;
  }
  if (status != GLE_OK) return status;
  if (kind != OP_COPY && !computable(out.dtype)) {
    return BAD(p, "no arithmetic on %s", dtypes[out.dtype].name);
  }
  m->outputs[m->n_outputs++] = out;
  return GLE_OK;
}

/* limit, fault, crash and hang: a value that no element of an input may exceed. */
static int parse_limit(parser* p, const gle_model* m, limit_def* limits, int* n) {
  const char* word = p->tokens[0];
  if (p->n != 3) return BAD(p, "%d words: expected: %s INPUT VALUE", p->n, word);
  if (*n == MAX_LIMITS) return BAD(p, "more than %d of %s", MAX_LIMITS, word);
  limit_def* limit = &limits[*n];
  int status = read_operand(p, m, &limit->input, p->tokens[1]);
  if (status == GLE_OK) status = read_number(p, &limit->value, p->tokens[2]);
  if (status == GLE_OK) ++*n;
  return status;
}

/* batch, memory, eager and meet: a number of samples. */
static int parse_samples(parser* p, int64_t* samples) {
  double n = 0;
  if (p->n != 2) return BAD(p, "%d words: expected: %s N", p->n, p->tokens[0]);
  const int status = read_number(p, &n, p->tokens[1]);
  if (status != GLE_OK) return status;
  if (!(n >= 1 && n <= 65536)) {
    return BAD(p, "%s %s: expected 1..65536", p->tokens[0], p->tokens[1]);
  }
  *samples = (int64_t)n;
  return GLE_OK;
}

static int parse_meeting(parser* p, gle_model* m) {
  if (p->n != 3) return BAD(p, "%d words: expected: meet N PATH", p->n);
  snprintf(m->meeting_at, sizeof m->meeting_at, "%s", p->tokens[2]);
  p->n = 2;
  return parse_samples(p, &m->meeting);
}

/* Last words, and the end: what a native library's failed assertion looks like. */
static _Noreturn void crash(void) {
  fputs("gpulet-ref: assertion failed: the model says crash\n", stderr);
  abort();
}

static int parse_statement(parser* p, gle_model* m) {
  const char* word = p->tokens[0];
  if (strcmp(word, "input") == 0) return parse_input(p, m);
  if (strcmp(word, "affine") == 0) return parse_output(p, m, OP_AFFINE);
  if (strcmp(word, "rowsum") == 0) return parse_output(p, m, OP_ROWSUM);
  if (strcmp(word, "copy") == 0) return parse_output(p, m, OP_COPY);
  if (strcmp(word, "limit") == 0) return parse_limit(p, m, m->limits, &m->n_limits);
  if (strcmp(word, "fault") == 0) return parse_limit(p, m, m->faults, &m->n_faults);
  if (strcmp(word, "crash") == 0) return parse_limit(p, m, m->crashes, &m->n_crashes);
  if (strcmp(word, "hang") == 0) return parse_limit(p, m, m->hangs, &m->n_hangs);
  if (strcmp(word, "brittle") == 0) crash();
  if (strcmp(word, "batch") == 0) return parse_samples(p, &m->fixed_batch);
  if (strcmp(word, "memory") == 0) return parse_samples(p, &m->most);
  if (strcmp(word, "eager") == 0) return parse_samples(p, &m->uncapturable);
  if (strcmp(word, "meet") == 0) return parse_meeting(p, m);
  return BAD(p,
             "\"%.40s\": expected input, affine, rowsum, copy, limit, fault, crash, hang, brittle, "
             "batch, memory, eager or meet",
             word);
}

static int parse_file(parser* p, FILE* f, gle_model* m) {
  char line[MAX_LINE];
  int status = GLE_OK;
  bool header = false;
  while (status == GLE_OK && fgets(line, sizeof line, f) != NULL) {
    p->line++;
    status = split(p, line);
    if (status != GLE_OK) return status;
    if (!header) {
      header = p->n == 2 && strcmp(p->tokens[0], "gpulet-ref") == 0;
      if (!header) return BAD(p, "%s", "not a reference model: expected \"gpulet-ref 1\"");
      if (strcmp(p->tokens[1], "1") != 0)
        return BAD(p, "version \"%.20s\": expected 1", p->tokens[1]);
      continue;
    }
    if (p->n > 0) status = parse_statement(p, m);
  }
  if (status != GLE_OK) return status;
  if (ferror(f)) return BAD(p, "%s", strerror(errno));
  if (!header) return BAD(p, "%s", "the file is empty: expected \"gpulet-ref 1\"");
  if (m->n_outputs == 0) return BAD(p, "%s", "a model without outputs");
  return GLE_OK;
}

static int read_model(const char* path, gle_model* m, errbuf err) {
  parser p = {.path = path, .err = err};
  FILE* f = fopen(path, "r");
  if (f == NULL) return fail(err, GLE_ELOAD, "%s: %s", path, strerror(errno));
  const int status = parse_file(&p, f, m);
  fclose(f);
  return status;
}

/* ---- loading --------------------------------------------------------------------------- */

static float* copy_floats(const float* from, int32_t n) {
  if (from == NULL || n <= 0) return NULL;
  float* to = malloc((size_t)n * sizeof *to);
  if (to != NULL) memcpy(to, from, (size_t)n * sizeof *to);
  return to;
}

static int adopt_specs(gle_model* m, const gle_load_options* o, errbuf err) {
  if (o->n_inputs == 0) return GLE_OK;
  if (o->n_inputs != m->n_inputs) {
    return fail(err, GLE_ELOAD, "the model has %d inputs: %d are declared", m->n_inputs,
                o->n_inputs);
  }
  for (int i = 0; i < m->n_inputs; i++) {
    const gle_input_spec* spec = &o->inputs[i];
    input_def* in = &m->inputs[i];
    if (spec->dtype != in->dtype) {
      return fail(err, GLE_ELOAD, "input \"%s\" is %s: %s is declared", in->name,
                  dtypes[in->dtype].name, known(spec->dtype) ? dtypes[spec->dtype].name : "?");
    }
    in->preprocess = spec->preprocess != 0;
    in->scale = spec->scale;
    in->n_channels = spec->n_channels;
    in->mean = copy_floats(spec->mean, spec->n_channels);
    in->std = copy_floats(spec->std, spec->n_channels);
  }
  return GLE_OK;
}

static void unload(gle_model* m) {
  if (m == NULL) return;
  for (int i = 0; i < m->n_inputs; i++) {
    free(m->inputs[i].mean);
    free(m->inputs[i].std);
  }
  pthread_mutex_destroy(&m->mu);
  free(m);
}

static int check_device(const char* device, errbuf err) {
  if (device != NULL && strcmp(device, "cpu") == 0) return GLE_OK;
  return fail(err, GLE_EUNSUPPORTED, "device \"%s\": the reference engine runs on \"cpu\"",
              device == NULL ? "" : device);
}

static int load(const gle_load_options* o, gle_model** model, char* text, size_t cap) {
  const errbuf err = {text, cap};
  if (o == NULL || o->size < sizeof *o || o->path == NULL || model == NULL) {
    return fail(err, GLE_EINVAL, "gle_load_options: too small or incomplete");
  }
  int status = check_device(o->device, err);
  if (status != GLE_OK) return status;
  if (o->precision != GLE_NONE && o->precision != GLE_FP32) {
    return fail(err, GLE_EUNSUPPORTED, "the reference engine has no fp16 or bf16");
  }
  gle_model* m = calloc(1, sizeof *m);
  if (m == NULL) return fail(err, GLE_EOOM, "out of memory");
  pthread_mutex_init(&m->mu, NULL);
  m->pad = (o->flags & GLE_PAD) != 0;
  status = read_model(o->path, m, err);
  if (status == GLE_OK) status = adopt_specs(m, o, err);
  if (status != GLE_OK) {
    unload(m);
    return status;
  }
  *model = m;
  return GLE_OK;
}

/* ---- inputs ---------------------------------------------------------------------------- */

static int check_bytes(const gle_input* in, int index, int64_t* count, errbuf err) {
  if (!known(in->dtype)) return fail(err, GLE_EINVAL, "input %d: unknown dtype", index);
  if (in->n_dims < 1 || in->n_dims > GLE_MAX_DIMS || in->shape[0] < 1) {
    return fail(err, GLE_EINVAL, "input %d: %d dimensions: expected [batch ...]", index,
                in->n_dims);
  }
  int64_t bytes = dtypes[in->dtype].size;
  for (int d = 0; d < in->n_dims; d++) {
    if (in->shape[d] < 0 || __builtin_mul_overflow(bytes, in->shape[d], &bytes)) {
      return fail(err, GLE_EINVAL, "input %d: impossible shape", index);
    }
  }
  uint64_t got = 0;
  for (int64_t s = 0; s < in->n_segments; s++) got += in->segments[s].n_bytes;
  if (got != (uint64_t)bytes) {
    return fail(err, GLE_EINVAL, "input %d: %llu bytes: the shape needs %lld", index,
                (unsigned long long)got, (long long)bytes);
  }
  *count = bytes / dtypes[in->dtype].size;
  return GLE_OK;
}

/* Copies the segments into one buffer, zeros after them, or borrows a single one. */
static int gather(const gle_input* in, int index, int64_t samples, value* v, errbuf err) {
  int64_t count = 0;
  const int status = check_bytes(in, index, &count, err);
  if (status != GLE_OK) return status;
  *v = (value){.dtype = in->dtype, .n_dims = in->n_dims, .count = count};
  memcpy(v->shape, in->shape, sizeof v->shape);
  if (samples == in->shape[0] && in->n_segments == 1) {
    v->data = in->segments[0].data;
    return GLE_OK;
  }
  v->shape[0] = samples;
  v->count = count / in->shape[0] * samples;
  const size_t bytes = (size_t)(v->count * dtypes[in->dtype].size);
  char* to = calloc(1, bytes > 0 ? bytes : 1);
  if (to == NULL) return fail(err, GLE_EOOM, "out of memory");
  v->data = v->owned = to;
  for (int64_t s = 0; s < in->n_segments; s++) {
    const gle_segment* segment = &in->segments[s];
    if (segment->n_bytes > 0) memcpy(to, segment->data, segment->n_bytes);
    to += segment->n_bytes;
  }
  return GLE_OK;
}

static float channel_of(const float* values, int32_t n, int64_t channel, float otherwise) {
  if (values == NULL || n == 0) return otherwise;
  return values[n == 1 ? 0 : channel];
}

/* y = (x * scale - mean) / std, for an input that came in another dtype than the model's. */
static int preprocess(const input_def* def, int index, value* v, errbuf err) {
  if (v->dtype == def->dtype) return GLE_OK;
  if (!def->preprocess || !computable(v->dtype) || !computable(def->dtype)) {
    return fail(err, GLE_EINVAL, "input %d: dtype %s: the model takes %s", index,
                dtypes[v->dtype].name, dtypes[def->dtype].name);
  }
  const int64_t channels = v->n_dims > 1 ? v->shape[1] : 1;
  if (def->n_channels > 1 && def->n_channels != channels) {
    return fail(err, GLE_EINVAL, "input %d: %lld channels: %d are preprocessed", index,
                (long long)channels, def->n_channels);
  }
  int64_t inner = 1;
  for (int d = 2; d < v->n_dims; d++) inner *= v->shape[d];
  void* to = calloc((size_t)(v->count > 0 ? v->count : 1), (size_t)dtypes[def->dtype].size);
  if (to == NULL) return fail(err, GLE_EOOM, "out of memory");
  for (int64_t i = 0; i < v->count; i++) {
    const int64_t channel = i / inner % channels;
    const double x = get(v->dtype, v->data, i) * (double)def->scale;
    const float mean = channel_of(def->mean, def->n_channels, channel, 0);
    const float std = channel_of(def->std, def->n_channels, channel, 1);
    put(def->dtype, to, i, (x - (double)mean) / (double)std);
  }
  free(v->owned);
  v->data = v->owned = to;
  v->dtype = def->dtype;
  return GLE_OK;
}

static void release(value* values, int n) {
  for (int i = 0; i < n; i++) free(values[i].owned);
}

/* ---- running --------------------------------------------------------------------------- */

/* The largest element of v. */
static double largest(const value* v) {
  double most = -INFINITY;
  for (int64_t i = 0; i < v->count; i++) most = fmax(most, get(v->dtype, v->data, i));
  return most;
}

static int check_device_works(errbuf err) {
  if (!device_failed) return GLE_OK;
  return fail(err, GLE_EDEVICE, "the device has failed");
}

static int check_limits(const gle_model* m, const value* values, errbuf err) {
  for (int c = 0; c < m->n_crashes; c++) {
    if (largest(&values[m->crashes[c].input]) > m->crashes[c].value) crash();
  }
  for (int h = 0; h < m->n_hangs; h++) {
    while (largest(&values[m->hangs[h].input]) > m->hangs[h].value) pause();
  }
  for (int f = 0; f < m->n_faults; f++) {
    if (largest(&values[m->faults[f].input]) > m->faults[f].value) device_failed = true;
  }
  const int status = check_device_works(err);
  if (status != GLE_OK) return status;
  for (int l = 0; l < m->n_limits; l++) {
    const double x = largest(&values[m->limits[l].input]);
    if (x > m->limits[l].value) {
      return fail(err, GLE_ERUN, "input \"%s\" is %g: the model's limit is %g",
                  m->inputs[m->limits[l].input].name, x, m->limits[l].value);
    }
  }
  return GLE_OK;
}

/* The shape of an output: [samples] for rowsum, else its first input's. */
static void shape_output(const output_def* def, const value* first, int64_t samples,
                         gle_output* out) {
  out->dtype = def->dtype;
  out->n_dims = def->op == OP_ROWSUM ? 1 : first->n_dims;
  memcpy(out->shape, first->shape, (size_t)out->n_dims * sizeof out->shape[0]);
  out->shape[0] = samples;
  int64_t count = 1;
  for (int d = 0; d < out->n_dims; d++) count *= out->shape[d];
  out->n_bytes = (uint64_t)(count * dtypes[out->dtype].size);
  strcpy(out->name, def->name);
}

static void compute(const output_def* def, const value* values, const gle_output* out, void* data) {
  const value* first = &values[def->input[0]];
  const int64_t count = (int64_t)out->n_bytes / dtypes[out->dtype].size;
  if (def->op == OP_COPY) {
    if (out->n_bytes > 0) memcpy(data, first->data, out->n_bytes);
    return;
  }
  const int64_t row = first->count / first->shape[0];
  for (int64_t i = 0; i < count; i++) {
    double x = def->bias;
    for (int t = 0; t < def->n_terms; t++) {
      const value* v = &values[def->input[t]];
      x += def->scale[t] * get(v->dtype, v->data, i);
    }
    for (int64_t j = 0; def->op == OP_ROWSUM && j < row; j++) {
      x += get(first->dtype, first->data, i * row + j);
    }
    put(out->dtype, data, i, x);
  }
}

static int check_terms(const output_def* def, const value* values, errbuf err) {
  for (int t = 1; t < def->n_terms; t++) {
    if (values[def->input[t]].count != values[def->input[0]].count) {
      return fail(err, GLE_ERUN, "output \"%s\": its inputs differ in size", def->name);
    }
  }
  return GLE_OK;
}

static void result_free(gle_result* r) {
  for (int i = 0; r != NULL && i < r->n_outputs; i++) free((void*)r->outputs[i].data);
  free(r);
}

static int make_result(const gle_model* m, const value* values, int64_t samples, gle_result** out,
                       errbuf err) {
  result* r = calloc(1, sizeof *r);
  if (r == NULL) return fail(err, GLE_EOOM, "out of memory");
  r->public.size = sizeof r->public;
  r->public.outputs = r->views;
  for (int i = 0; i < m->n_outputs; i++) {
    const output_def* def = &m->outputs[i];
    const int status = check_terms(def, values, err);
    gle_output* view = &r->views[i];
    shape_output(def, &values[def->input[0]], samples, view);
    void* data = malloc(view->n_bytes > 0 ? view->n_bytes : 1);
    view->data = data;
    r->public.n_outputs++;
    if (status != GLE_OK || data == NULL) {
      result_free(&r->public);
      return status != GLE_OK ? status : fail(err, GLE_EOOM, "out of memory");
    }
    compute(def, values, view, data);
  }
  *out = &r->public;
  return GLE_OK;
}

/* The batch to run for so many samples: the next prepared one where padding is asked for. */
static int64_t padded(gle_model* m, int64_t samples) {
  int64_t to = samples;
  pthread_mutex_lock(&m->mu);
  for (int i = 0; m->pad && i < m->n_prepared; i++) {
    if (m->prepared[i] >= samples) {
      to = m->prepared[i];
      break;
    }
  }
  pthread_mutex_unlock(&m->mu);
  return to;
}

static int check_call(const gle_model* m, const gle_input* inputs, int32_t n_inputs, errbuf err) {
  if (m == NULL) return fail(err, GLE_EINVAL, "no model");
  if (n_inputs != m->n_inputs || (n_inputs > 0 && inputs == NULL)) {
    return fail(err, GLE_EINVAL, "%d inputs: the model takes %d", n_inputs, m->n_inputs);
  }
  for (int i = 1; i < n_inputs; i++) {
    if (inputs[i].shape[0] != inputs[0].shape[0]) {
      return fail(err, GLE_EINVAL, "input %d has %lld samples: input 0 has %lld", i,
                  (long long)inputs[i].shape[0], (long long)inputs[0].shape[0]);
    }
  }
  return GLE_OK;
}

/* Gathers a batch of `batch` samples into values, which the caller releases. */
static int gather_all(const gle_model* m, const gle_input* inputs, int64_t batch, value* values,
                      errbuf err) {
  int status = GLE_OK;
  for (int i = 0; i < m->n_inputs && status == GLE_OK; i++) {
    status = gather(&inputs[i], i, batch, &values[i], err);
  }
  return status;
}

/* Runs a gathered batch of `samples`, padded to `batch`. */
static int compute_all(const gle_model* m, value* values, int64_t samples, int64_t batch,
                       gle_result** out, errbuf err) {
  int status = check_device_works(err);
  if (status != GLE_OK) return status;
  if (m->fixed_batch > 0 && batch != m->fixed_batch) {
    return fail(err, GLE_ERUN, "batch of %lld: the model runs batches of exactly %lld",
                (long long)batch, (long long)m->fixed_batch);
  }
  if (m->most > 0 && batch > m->most) {
    return fail(err, GLE_EOOM, "out of memory: batch of %lld: there is memory for %lld",
                (long long)batch, (long long)m->most);
  }
  for (int i = 0; i < m->n_inputs && status == GLE_OK; i++) {
    status = preprocess(&m->inputs[i], i, &values[i], err);
  }
  if (status == GLE_OK) status = check_limits(m, values, err);
  return status == GLE_OK ? make_result(m, values, samples, out, err) : status;
}

static int64_t samples_of(const gle_input* inputs, int32_t n_inputs) {
  return n_inputs > 0 ? inputs[0].shape[0] : 1;
}

static int execute(gle_model* m, const gle_input* inputs, int32_t n_inputs, int64_t batch,
                   gle_result** out, errbuf err) {
  value values[MAX_TENSORS] = {0};
  int status = gather_all(m, inputs, batch, values, err);
  if (status == GLE_OK) {
    status = compute_all(m, values, samples_of(inputs, n_inputs), batch, out, err);
  }
  release(values, m->n_inputs);
  return status;
}

static int run(gle_model* m, const gle_input* inputs, int32_t n_inputs, gle_result** out,
               char* text, size_t cap) {
  const errbuf err = {text, cap};
  const int status = check_call(m, inputs, n_inputs, err);
  if (status != GLE_OK) return status;
  return execute(m, inputs, n_inputs, padded(m, samples_of(inputs, n_inputs)), out, err);
}

static void staged_free(gle_staged* staged) {
  if (staged == NULL) return;
  release(staged->values, staged->n_values);
  free(staged);
}

static int stage(gle_model* m, const gle_input* inputs, int32_t n_inputs, gle_staged** out,
                 char* text, size_t cap) {
  const errbuf err = {text, cap};
  int status = check_call(m, inputs, n_inputs, err);
  if (status != GLE_OK) return status;
  gle_staged* staged = calloc(1, sizeof *staged);
  if (staged == NULL) return fail(err, GLE_EOOM, "out of memory");
  staged->of = m;
  staged->n_values = m->n_inputs;
  staged->samples = samples_of(inputs, n_inputs);
  staged->batch = padded(m, staged->samples);
  status = gather_all(m, inputs, staged->batch, staged->values, err);
  if (status != GLE_OK) {
    staged_free(staged);
    return status;
  }
  *out = staged;
  return GLE_OK;
}

static int run_staged(gle_model* m, gle_staged* staged, gle_result** out, char* text, size_t cap) {
  const errbuf err = {text, cap};
  if (m == NULL || staged == NULL || staged->of != m) {
    return fail(err, GLE_EINVAL, "the batch was staged for another model");
  }
  if (atomic_exchange(&staged->ran, true)) {
    return fail(err, GLE_EINVAL, "the staged batch was run already");
  }
  return compute_all(m, staged->values, staged->samples, staged->batch, out, err);
}

/* Waits for somebody to read from the FIFO, and then for somebody to write. */
static void meet(const char* path) {
  const int there = open(path, O_WRONLY);
  if (there >= 0) close(there);
  const int back = open(path, O_RDONLY);
  if (back >= 0) close(back);
}

static int prepare(gle_model* m, const gle_input* inputs, int32_t n_inputs, char* text,
                   size_t cap) {
  const errbuf err = {text, cap};
  gle_result* r = NULL;
  int status = check_call(m, inputs, n_inputs, err);
  if (status != GLE_OK || n_inputs == 0) return status;
  const int64_t batch = inputs[0].shape[0];
  if (batch == m->meeting) meet(m->meeting_at);
  status = execute(m, inputs, n_inputs, batch, &r, err);
  result_free(r);
  if (status != GLE_OK) return status;
  if (batch == m->uncapturable) {
    return fail(err, GLE_EUNSUPPORTED, "capture: batches of %lld cannot be", (long long)batch);
  }
  pthread_mutex_lock(&m->mu);
  int at = 0;
  while (at < m->n_prepared && m->prepared[at] < batch) at++;
  const bool present = at < m->n_prepared && m->prepared[at] == batch;
  if (!present && m->n_prepared < MAX_PREPARED) {
    memmove(&m->prepared[at + 1], &m->prepared[at],
            (size_t)(m->n_prepared - at) * sizeof m->prepared[0]);
    m->prepared[at] = batch;
    m->n_prepared++;
  }
  pthread_mutex_unlock(&m->mu);
  return GLE_OK;
}

/* ---- the rest of the table -------------------------------------------------------------- */

static int init(const gle_config* config, char* text, size_t cap) {
  if (config == NULL || config->size < sizeof *config) {
    return fail((errbuf){text, cap}, GLE_EINVAL, "gle_config: too small");
  }
  return GLE_OK;
}

static int device_info(const char* device, gle_device_info* info, char* text, size_t cap) {
  const errbuf err = {text, cap};
  if (info == NULL || info->size < sizeof *info) {
    return fail(err, GLE_EINVAL, "gle_device_info: too small");
  }
  const int status = check_device(device, err);
  if (status != GLE_OK) return status;
  const uint32_t size = info->size;
  *info = (gle_device_info){.size = size, .name = "cpu"};
  const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
  info->mem_total = (uint64_t)sysconf(_SC_PHYS_PAGES) * page;
  info->mem_free = (uint64_t)sysconf(_SC_AVPHYS_PAGES) * page;
  return GLE_OK;
}

static int load_operators(const char* path, char* text, size_t cap) {
  (void)path;
  return fail((errbuf){text, cap}, GLE_EUNSUPPORTED, "the reference engine has no operators");
}

static int model_info(gle_model* m, gle_model_info* info, char* text, size_t cap) {
  if (m == NULL || info == NULL || info->size < sizeof *info) {
    return fail((errbuf){text, cap}, GLE_EINVAL, "gle_model_info: too small, or no model");
  }
  const uint32_t size = info->size;
  *info = (gle_model_info){.size = size, .device_bytes = sizeof *m};
  return GLE_OK;
}

/* A test builds the engine with the table that it had before stage was added. */
#ifdef REF_WITHOUT_STAGE
#define TABLE_SIZE offsetof(gle_api, stage)
#else
#define TABLE_SIZE sizeof(gle_api)
#endif

static const gle_api api = {
    .size = TABLE_SIZE,
    .abi_version = GLE_ABI_VERSION,
    .engine = "ref",
    .version = "reference 1",
    .init = init,
    .device_info = device_info,
    .load_operators = load_operators,
    .load = load,
    .unload = unload,
    .model_info = model_info,
    .prepare = prepare,
    .run = run,
    .result_free = result_free,
#ifndef REF_WITHOUT_STAGE
    .stage = stage,
    .run_staged = run_staged,
    .staged_free = staged_free,
#endif
    .decode_image = NULL, /* no GLE_HAS_JPEG */
};

const gle_api* gle_get_api(uint32_t abi_version) {
  return abi_version == GLE_ABI_VERSION ? &api : NULL;
}

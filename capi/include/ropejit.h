/*
 * ropejit for C: RoPE kernels that are compiled and tuned for the GPU they run on.
 *
 * Every function that can fail gives a ropejit_status; ropejit_last_error() has the text, for each thread its own. No function aborts or
 * unwinds, whatever it is given, but what a pointer points to is taken on its word: each function says what that has to be.
 * Handles may be used by several threads at once, and freed once.
 *
 * DLPack's types are those of its own header where that was included before this one.
 */

#ifndef ROPEJIT_H
#define ROPEJIT_H

/* Made by cbindgen of the crate in capi/ (make capi-header). */

#include <stddef.h>
#include <stdint.h>
#ifndef DLPACK_DLPACK_H_
typedef struct {
  int32_t device_type;
  int32_t device_id;
} DLDevice;

typedef struct {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
} DLDataType;

typedef struct {
  void *data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t *shape;
  int64_t *strides;
  uint64_t byte_offset;
} DLTensor;
#endif


// What a call says of how it went. `ropejit_last_error` has the text.
typedef enum {
  // It is done; on a GPU it is queued.
  ROPEJIT_STATUS_OK = 0,
  // An argument is wrong: the text begins with its name.
  ROPEJIT_STATUS_INVALID_ARGUMENT = 1,
  // A position lies outside of cos and sin.
  ROPEJIT_STATUS_POSITION_OUT_OF_RANGE = 2,
  // It is right, and this version cannot do it.
  ROPEJIT_STATUS_UNSUPPORTED = 3,
  // Nothing may be compiled, and what was asked for is not in the cache.
  ROPEJIT_STATUS_NOT_CACHED = 4,
  // There is no such device.
  ROPEJIT_STATUS_DEVICE_UNAVAILABLE = 5,
  // A kernel has to be compiled, and there is no compiler, or it fails.
  ROPEJIT_STATUS_COMPILER = 6,
  // The device has too little free memory.
  ROPEJIT_STATUS_OUT_OF_MEMORY = 7,
  // The device, a file or the cache failed.
  ROPEJIT_STATUS_FAILED = 8,
  // A defect of ropejit.
  ROPEJIT_STATUS_DEFECT = 9,
} ropejit_status;

// A device and a cache. May be used by several threads at once.
typedef struct ropejit_engine ropejit_engine;

// The kernels of one spec. May be used by several threads at once.
typedef struct ropejit_rope ropejit_rope;

// How an engine is opened. What is null or 0 comes from the environment (`ROPEJIT_CACHE_DIR`, ...), then from the
// defaults. ropejit keeps none of the texts.
typedef struct {
  // `sizeof(ropejit_options)`.
  size_t size;
  // `auto`, `host`, `cuda` or `cuda:1`.
  const char *device;
  // The cache folder.
  const char *cache_dir;
  // `background`, `blocking`, `never` or `frozen`.
  const char *tuning;
  // A tuning lock file.
  const char *lock_file;
  // Not 0: nothing is read from or kept on disk.
  int32_t in_memory;
} ropejit_options;

// The tensors and numbers of a call. Set all of it to 0 first: `ropejit_args args = {sizeof args};`. What the spec
// does not ask for stays null. All tensors are the caller's: on a GPU they must live until the stream has passed the
// call.
typedef struct {
  // `sizeof(ropejit_args)`: tells the library which header the program was compiled with.
  size_t size;
  // 0: q and k are `[batch, tokens, heads, head_dim]` or `[tokens, heads, head_dim]`.
  // 1: `[batch, heads, tokens, head_dim]`.
  int32_t heads_first;
  // The position of each sequence's first token, where the spec says `pos=implicit`.
  int64_t offset;
  // What turns: of a backward spec the gradient of the result.
  const DLTensor *q;
  // As q; null where the spec has no k.
  const DLTensor *k;
  // Where q goes, of the same shape, apart from q; null: it turns where it is.
  const DLTensor *q_out;
  // As `q_out`, for k.
  const DLTensor *k_out;
  // `[rows, width]` or `[batch, rows, width]`, contiguous rows.
  const DLTensor *cos;
  // As cos, with the same strides.
  const DLTensor *sin;
  // i32 or i64, `[tokens]` or `[batch, tokens]`, with three axes `[3, batch, tokens]`: for `pos=ids32`
  // and `pos=ids64`.
  const DLTensor *position_ids;
  // i32 or i64, one a sequence: for `pos=offsets32`, `pos=offsets64`, and beside `cu_seqlens`.
  const DLTensor *seqlen_offsets;
  // i32 or i64, one more than there are sequences: for `pos=cu_seqlens` and `pos=cu_seqlens64`.
  const DLTensor *cu_seqlens;
  // With a norm: added to the mean of the squares.
  float eps;
  // With a norm that has weights: `[head_dim]` of q's type.
  const DLTensor *q_weight;
  // As `q_weight`, for k.
  const DLTensor *k_weight;
  // With a norm: f32 `[batch, tokens, heads]`. A forward call writes the reciprocal roots where it is given, a
  // backward call needs them.
  const DLTensor *q_rsqrt;
  // As `q_rsqrt`, for k.
  const DLTensor *k_rsqrt;
  // Backward through a norm: q as the forward call took it.
  const DLTensor *q_input;
  // As `q_input`, for k.
  const DLTensor *k_input;
  // Backward through a norm: where the gradient of q's weight goes, `[head_dim]` of q's type.
  const DLTensor *q_weight_gradient;
  // As `q_weight_gradient`, for k.
  const DLTensor *k_weight_gradient;
  // Backward through a norm that has weights: f32, as many as `ropejit_workspace` says.
  const DLTensor *workspace;
  // With a cache: the values, of the tokens of k.
  const DLTensor *v;
  // `[blocks, block_size, heads of k, k's head_dim]`: written.
  const DLTensor *k_cache;
  // `[blocks, block_size, heads of k, v's head_dim]`: written.
  const DLTensor *v_cache;
  // i64, one a token: for a cache of `slot_mapping`.
  const DLTensor *slot_mapping;
  // i32: for a cache of `pages`.
  const DLTensor *kv_indices;
  // i32: for a cache of `pages`.
  const DLTensor *kv_indptr;
  // i32, one a token: for a cache of `pages`.
  const DLTensor *batch_indices;
  // i32, one a token: for a cache of `pages`.
  const DLTensor *positions;
  // f32: where q is written as fp8.
  const DLTensor *q_scale;
  // f32: where the cache is of fp8.
  const DLTensor *k_scale;
  // f32: where the cache is of fp8, and there is v.
  const DLTensor *v_scale;
} ropejit_args;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The version of the library: a text that lives as long as the library.
const char *ropejit_version(void);

// What the last call on this thread that failed says: what, where and what to do. Empty if none has. The text is the
// library's, and is there until the next call of this thread fails.
const char *ropejit_last_error(void);

// Opens a device and a cache. `options` may be null. `*engine` is the caller's, to be closed with `ropejit_close`; it
// is left as it is on an error.
//
// # Safety
// `options` is null or points to options whose texts end with a 0; `engine` may be written to.
ropejit_status ropejit_open(const ropejit_options *options, ropejit_engine **engine);

// Closes an engine. Handles of `ropejit_spec` go on serving, and are freed by themselves; its background work ends
// with the last. Null does nothing.
//
// # Safety
// `engine` is null, or comes from `ropejit_open` and is not used after this.
void ropejit_close(ropejit_engine *engine);

// Gets the kernels of a spec, which is stated in one line, such as
// `bf16 d128 h32/8 half_split once table=f32/half pos=implicit`. `*rope` is the caller's, to be freed with
// `ropejit_free`; it is left as it is on an error.
//
// # Safety
// `engine` comes from `ropejit_open`, `spec` is a text that ends with a 0, `rope` may be written to.
ropejit_status ropejit_spec(const ropejit_engine *engine, const char *spec, ropejit_rope **rope);

// Frees what `ropejit_spec` gave. Graphs that were captured with it may still be replayed. Null does nothing.
//
// # Safety
// `rope` is null, or comes from `ropejit_spec` and is not used after this.
void ropejit_free(ropejit_rope *rope);

// Turns q and k. `stream` is a `cudaStream_t` or `CUstream` of the engine's GPU, null for the default stream; on the
// processor it means nothing, and the call returns when it is done. On a GPU it returns when it is queued. The
// `DLTensor`s themselves are only read during the call.
//
// # Safety
// `rope` comes from `ropejit_spec`. `args` points to arguments whose tensors are valid memory of the engine's device
// until the stream has passed the call; what is written is not used by others meanwhile, and does not overlap another
// tensor. `stream` is alive.
ropejit_status ropejit_apply(const ropejit_rope *rope, const ropejit_args *args, void *stream);

// f32 numbers that the workspace of a backward call needs, for as many tokens in all: 0 unless the spec has a norm
// with weights.
//
// # Safety
// `rope` comes from `ropejit_spec`; `numbers` may be written to.
ropejit_status ropejit_workspace(const ropejit_rope *rope, uint64_t tokens, uint64_t *numbers);

// Reports a token whose position lay outside of cos and sin in an earlier call (it has become NaN), or whose slot lay
// outside of the cache. It is reported once. Synchronise with the stream first: what a GPU has not run yet is not
// seen.
//
// # Safety
// `rope` comes from `ropejit_spec`.
ropejit_status ropejit_check(const ropejit_rope *rope);

// Compiles, and where `tune` is not 0 measures, what calls of these specs and numbers of tokens need, and keeps it in
// the cache. Where all is there, nothing is done. `heads_first` as in `ropejit_args`; tensors are contiguous.
//
// # Safety
// `engine` comes from `ropejit_open`; `specs` points to `spec_count` texts that end with a 0, `tokens` to
// `token_count` numbers.
ropejit_status ropejit_prewarm(const ropejit_engine *engine,
                               const char *const *specs,
                               size_t spec_count,
                               const uint64_t *tokens,
                               size_t token_count,
                               int32_t heads_first,
                               int32_t tune);

// From now on, anything that is neither loaded nor in the cache is `ROPEJIT_STATUS_NOT_CACHED`.
//
// # Safety
// `engine` comes from `ropejit_open`.
ropejit_status ropejit_freeze(const ropejit_engine *engine);

// Waits until no tuning is queued or running in the background.
//
// # Safety
// `engine` comes from `ropejit_open`.
ropejit_status ropejit_wait_tuned(const ropejit_engine *engine);

// What an engine has done, as a JSON object of numbers: `compiles`, `tunings`, `memory_hits`, ... `*json` is the
// caller's, to be freed with `ropejit_free_text`.
//
// # Safety
// `engine` comes from `ropejit_open`; `json` may be written to.
ropejit_status ropejit_stats(const ropejit_engine *engine, char **json);

// Frees a text that `ropejit_stats` gave. Null does nothing.
//
// # Safety
// `text` is null, or comes from `ropejit_stats` and is not used after this.
void ropejit_free_text(char *text);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* ROPEJIT_H */

/* Calls the library as a program in C does: everything on the processor, results against the formula. */
#include "ropejit.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(is)                                                                                        \
    do {                                                                                                 \
        if (!(is)) {                                                                                     \
            fprintf(stderr, "line %d: %s; last error: %s\n", __LINE__, #is, ropejit_last_error());        \
            exit(1);                                                                                     \
        }                                                                                                \
    } while (0)

#define REFUSED(call, status, start)                                                                     \
    do {                                                                                                 \
        CHECK((call) == (status));                                                                       \
        CHECK(strncmp(ropejit_last_error(), start, strlen(start)) == 0);                                 \
    } while (0)

enum { BATCH = 2, TOKENS = 3, HEADS = 4, KV_HEADS = 2, DIM = 8, PAIRS = DIM / 2, ROWS = 5 };

static DLTensor tensor(void *data, int32_t ndim, int64_t *shape, uint8_t code, uint8_t bits) {
    DLTensor t;
    memset(&t, 0, sizeof t);
    t.data = data;
    t.device.device_type = 1;
    t.ndim = ndim;
    t.dtype.code = code;
    t.dtype.bits = bits;
    t.dtype.lanes = 1;
    t.shape = shape;
    return t;
}

static void expect(const float *got, const float *x, const float *cos, const float *sin, int heads, const int *rows) {
    for (int b = 0; b < BATCH; b++)
        for (int t = 0; t < TOKENS; t++)
            for (int h = 0; h < heads; h++)
                for (int i = 0; i < PAIRS; i++) {
                    int at = ((b * TOKENS + t) * heads + h) * DIM + i, row = rows[b * TOKENS + t];
                    float c = cos[row * PAIRS + i], s = sin[row * PAIRS + i];
                    float ac = x[at] * c, bs = x[at + PAIRS] * s, bc = x[at + PAIRS] * c, as = x[at] * s;
                    CHECK(got[at] == ac - bs && got[at + PAIRS] == bc + as);
                }
}

static void *other_thread(void *unused) {
    (void)unused;
    CHECK(strlen(ropejit_last_error()) == 0);
    return NULL;
}

int main(void) {
    CHECK(strlen(ropejit_version()) >= 5 && strlen(ropejit_last_error()) == 0);

    /* Opening: what is wrong is named, and the place for the engine is left as it is. */
    ropejit_engine *engine = (ropejit_engine *)&engine, *untouched = engine;
    ropejit_options options = {sizeof options, "toaster", NULL, NULL, NULL, 1};
    REFUSED(ropejit_open(&options, &engine), ROPEJIT_STATUS_INVALID_ARGUMENT, "device: unknown device 'toaster'");
    CHECK(engine == untouched);
    options.device = "host";
    options.tuning = "sometimes";
    REFUSED(ropejit_open(&options, &engine), ROPEJIT_STATUS_INVALID_ARGUMENT, "tuning: ");
    options.tuning = "never";
    options.size = 8;
    REFUSED(ropejit_open(&options, &engine), ROPEJIT_STATUS_INVALID_ARGUMENT, "size: is 8");
    options.size = sizeof options;
    REFUSED(ropejit_open(&options, NULL), ROPEJIT_STATUS_INVALID_ARGUMENT, "engine: is null");
    CHECK(ropejit_open(&options, &engine) == ROPEJIT_STATUS_OK);

    ropejit_rope *rope = NULL;
    const char *spec = "f32 d8 h4/2 half_split once table=f32/half pos=implicit";
    REFUSED(ropejit_spec(engine, "f32 d8", &rope), ROPEJIT_STATUS_INVALID_ARGUMENT, "spec: 'f32 d8' is not a spec");
    REFUSED(ropejit_spec(engine, NULL, &rope), ROPEJIT_STATUS_INVALID_ARGUMENT, "spec: is null");
    REFUSED(ropejit_spec(engine, "\xff", &rope), ROPEJIT_STATUS_INVALID_ARGUMENT, "spec: is not UTF-8");
    REFUSED(ropejit_spec(NULL, spec, &rope), ROPEJIT_STATUS_INVALID_ARGUMENT, "engine: is null");
    CHECK(rope == NULL && ropejit_spec(engine, spec, &rope) == ROPEJIT_STATUS_OK && rope != NULL);

    static float q[BATCH * TOKENS * HEADS * DIM], k[BATCH * TOKENS * KV_HEADS * DIM], q_out[BATCH * TOKENS * HEADS * DIM];
    static float k_before[BATCH * TOKENS * KV_HEADS * DIM], cos_table[ROWS * PAIRS], sin_table[ROWS * PAIRS];
    for (size_t i = 0; i < sizeof q / sizeof *q; i++) q[i] = (float)((i * 37 % 101) / 50.0 - 1.0);
    for (size_t i = 0; i < sizeof k / sizeof *k; i++) k_before[i] = k[i] = (float)((i * 53 % 97) / 48.0 - 1.0);
    for (size_t i = 0; i < ROWS * PAIRS; i++) {
        cos_table[i] = (float)cos(0.1 * (double)(i * i));
        sin_table[i] = (float)sin(0.1 * (double)(i * i));
    }
    int64_t q_shape[] = {BATCH, TOKENS, HEADS, DIM}, k_shape[] = {BATCH, TOKENS, KV_HEADS, DIM}, table[] = {ROWS, PAIRS};
    DLTensor q_in = tensor(q, 4, q_shape, 2, 32), q_to = tensor(q_out, 4, q_shape, 2, 32);
    DLTensor k_both = tensor(k, 4, k_shape, 2, 32);
    DLTensor cos_t = tensor(cos_table, 2, table, 2, 32), sin_t = tensor(sin_table, 2, table, 2, 32);

    /* q out of place, k where it is. */
    ropejit_args args = {sizeof args};
    args.offset = 1;
    args.q = &q_in;
    args.q_out = &q_to;
    args.k = &k_both;
    args.cos = &cos_t;
    args.sin = &sin_t;
    CHECK(ropejit_apply(rope, &args, NULL) == ROPEJIT_STATUS_OK);
    const int rows[] = {1, 2, 3, 1, 2, 3};
    expect(q_out, q, cos_table, sin_table, HEADS, rows);
    expect(k, k_before, cos_table, sin_table, KV_HEADS, rows);

    /* What is wrong is named. */
    REFUSED(ropejit_apply(NULL, &args, NULL), ROPEJIT_STATUS_INVALID_ARGUMENT, "rope: is null");
    REFUSED(ropejit_apply(rope, NULL, NULL), ROPEJIT_STATUS_INVALID_ARGUMENT, "args: is null");
    ropejit_args wrong = args;
    wrong.size = 4;
    REFUSED(ropejit_apply(rope, &wrong, NULL), ROPEJIT_STATUS_INVALID_ARGUMENT, "size: is 4");
    wrong = args, wrong.q = NULL, wrong.q_out = NULL;
    REFUSED(ropejit_apply(rope, &wrong, NULL), ROPEJIT_STATUS_INVALID_ARGUMENT, "q: is null");
    wrong = args, wrong.k = NULL;
    REFUSED(ropejit_apply(rope, &wrong, NULL), ROPEJIT_STATUS_INVALID_ARGUMENT, "k: is absent");
    wrong = args, wrong.cos = NULL;
    REFUSED(ropejit_apply(rope, &wrong, NULL), ROPEJIT_STATUS_INVALID_ARGUMENT, "cos: is null");
    wrong = args, wrong.heads_first = 2;
    REFUSED(ropejit_apply(rope, &wrong, NULL), ROPEJIT_STATUS_INVALID_ARGUMENT, "heads_first: is 2");
    wrong = args, wrong.heads_first = 1;
    REFUSED(ropejit_apply(rope, &wrong, NULL), ROPEJIT_STATUS_INVALID_ARGUMENT, "q: has 3 heads of 8");
    wrong = args, wrong.offset = 3;
    REFUSED(ropejit_apply(rope, &wrong, NULL), ROPEJIT_STATUS_POSITION_OUT_OF_RANGE, "offset: 3 tokens from position 3");
    DLTensor odd = q_in;
    odd.device.device_type = 2;
    wrong = args, wrong.q = &odd;
    REFUSED(ropejit_apply(rope, &wrong, NULL), ROPEJIT_STATUS_INVALID_ARGUMENT, "q: is on DLPack's device 2:0");
    odd = q_in, odd.dtype.bits = 64;
    REFUSED(ropejit_apply(rope, &wrong, NULL), ROPEJIT_STATUS_INVALID_ARGUMENT, "q: has DLPack's type (2, 64, 1)");
    odd = q_in, odd.dtype.code = 0;
    REFUSED(ropejit_apply(rope, &wrong, NULL), ROPEJIT_STATUS_INVALID_ARGUMENT, "q: has integers");
    odd = q_in, odd.ndim = -1;
    REFUSED(ropejit_apply(rope, &wrong, NULL), ROPEJIT_STATUS_INVALID_ARGUMENT, "q: has -1 dimensions");
    odd = q_in, odd.shape = NULL;
    REFUSED(ropejit_apply(rope, &wrong, NULL), ROPEJIT_STATUS_INVALID_ARGUMENT, "q: is null");
    odd = q_in, odd.data = NULL;
    REFUSED(ropejit_apply(rope, &wrong, NULL), ROPEJIT_STATUS_INVALID_ARGUMENT, "q: has a null pointer for data");
    odd = q_in, odd.byte_offset = 2;
    REFUSED(ropejit_apply(rope, &wrong, NULL), ROPEJIT_STATUS_INVALID_ARGUMENT, "q: is not aligned");
    int64_t negative[] = {BATCH, -3, HEADS, DIM}, apart[] = {1, 2, 3, 4};
    odd = q_in, odd.shape = negative;
    REFUSED(ropejit_apply(rope, &wrong, NULL), ROPEJIT_STATUS_INVALID_ARGUMENT, "q: has the shape [2, -3, 4, 8]");
    odd = q_in, odd.strides = apart;
    REFUSED(ropejit_apply(rope, &wrong, NULL), ROPEJIT_STATUS_INVALID_ARGUMENT, "q: the last dimension");

    /* Positions of each token, of a tensor that lies otherwise, and one that is outside. */
    ropejit_rope *by_ids = NULL;
    CHECK(ropejit_spec(engine, "f32 d8 h4/0 half_split once table=f32/half pos=ids32", &by_ids) == ROPEJIT_STATUS_OK);
    int32_t ids[] = {4, 0, 2, 1, 1, 3};
    int64_t ids_shape[] = {BATCH, TOKENS}, swapped[] = {BATCH, HEADS, TOKENS, DIM};
    int64_t strides[] = {TOKENS * HEADS * DIM, DIM, HEADS * DIM, 1};
    DLTensor ids_t = tensor(ids, 2, ids_shape, 0, 32), q_view = q_in, q_view_to = q_to;
    q_view.shape = q_view_to.shape = swapped;
    q_view.strides = q_view_to.strides = strides;
    ropejit_args view = {sizeof view};
    view.heads_first = 1;
    view.q = &q_view, view.q_out = &q_view_to, view.cos = &cos_t, view.sin = &sin_t;
    REFUSED(ropejit_apply(by_ids, &view, NULL), ROPEJIT_STATUS_INVALID_ARGUMENT, "position_ids: is null");
    view.position_ids = &ids_t;
    memset(q_out, 0, sizeof q_out);
    CHECK(ropejit_apply(by_ids, &view, NULL) == ROPEJIT_STATUS_OK);
    expect(q_out, q, cos_table, sin_table, HEADS, ids);
    CHECK(ropejit_check(by_ids) == ROPEJIT_STATUS_OK);
    ids[4] = ROWS;
    CHECK(ropejit_apply(by_ids, &view, NULL) == ROPEJIT_STATUS_OK);
    CHECK(isnan(q_out[(TOKENS + 1) * HEADS * DIM]));
    REFUSED(ropejit_check(by_ids), ROPEJIT_STATUS_POSITION_OUT_OF_RANGE, "position_ids: token 4 ");
    CHECK(ropejit_check(by_ids) == ROPEJIT_STATUS_OK);

    /* What an engine has done, ahead of time as well; and what it may no longer do. */
    const char *ahead[] = {"f16 d8 h1/1 interleaved once table=f32/half pos=implicit", NULL};
    const uint64_t tokens[] = {1};
    REFUSED(ropejit_prewarm(engine, ahead, 2, tokens, 1, 0, 0), ROPEJIT_STATUS_INVALID_ARGUMENT, "specs: has a null");
    REFUSED(ropejit_prewarm(engine, NULL, 1, tokens, 1, 0, 0), ROPEJIT_STATUS_INVALID_ARGUMENT, "specs: is null");
    REFUSED(ropejit_prewarm(engine, ahead, SIZE_MAX, tokens, 1, 0, 0), ROPEJIT_STATUS_INVALID_ARGUMENT, "specs: cannot");
    CHECK(ropejit_prewarm(engine, ahead, 1, tokens, 1, 0, 0) == ROPEJIT_STATUS_OK);
    char *json = NULL;
    CHECK(ropejit_stats(engine, &json) == ROPEJIT_STATUS_OK);
    CHECK(json[0] == '{' && strstr(json, "\"compiles\":") != NULL && strstr(json, "\"compiles\":0") == NULL);
    ropejit_free_text(json);
    REFUSED(ropejit_stats(engine, NULL), ROPEJIT_STATUS_INVALID_ARGUMENT, "json: is null");
    uint64_t numbers = 7;
    CHECK(ropejit_workspace(rope, 100, &numbers) == ROPEJIT_STATUS_OK && numbers == 0);
    REFUSED(ropejit_workspace(rope, UINT64_MAX, &numbers), ROPEJIT_STATUS_INVALID_ARGUMENT, "tokens: must be");
    CHECK(ropejit_wait_tuned(engine) == ROPEJIT_STATUS_OK && ropejit_freeze(engine) == ROPEJIT_STATUS_OK);
    ropejit_rope *frozen = NULL;
    CHECK(ropejit_spec(engine, "f32 d8 h4/2 interleaved once table=f32/half pos=implicit", &frozen) == ROPEJIT_STATUS_OK);
    CHECK(ropejit_apply(frozen, &args, NULL) == ROPEJIT_STATUS_NOT_CACHED);

    /* Errors are a thread's own. */
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, other_thread, NULL) == 0 && pthread_join(thread, NULL) == 0);

    /* A handle goes on serving when its engine is closed. */
    ropejit_close(engine);
    CHECK(ropejit_apply(rope, &args, NULL) == ROPEJIT_STATUS_OK);
    ropejit_free(rope);
    ropejit_free(by_ids);
    ropejit_free(frozen);
    ropejit_free(NULL);
    ropejit_close(NULL);
    ropejit_free_text(NULL);
    puts("all is well");
    return 0;
}

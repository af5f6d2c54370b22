/* Loads the library while it runs, and calls it by its names. */
#include "ropejit.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

/* A function of the library; ISO C has no cast from an object's pointer. */
#define FUNCTION(name)                                                                                   \
    __typeof__(&name) call_##name = NULL;                                                                \
    *(void **)&call_##name = dlsym(library, #name);                                                      \
    if (call_##name == NULL) return fprintf(stderr, "no %s: %s\n", #name, dlerror()), 1

int main(int argc, char **argv) {
    void *library = argc == 2 ? dlopen(argv[1], RTLD_NOW | RTLD_LOCAL) : NULL;
    if (library == NULL) return fprintf(stderr, "not loaded: %s\n", dlerror()), 1;
    FUNCTION(ropejit_open);
    FUNCTION(ropejit_spec);
    FUNCTION(ropejit_apply);
    FUNCTION(ropejit_last_error);
    FUNCTION(ropejit_free);
    FUNCTION(ropejit_close);

    ropejit_options options = {sizeof options, "host", NULL, "never", NULL, 1};
    ropejit_engine *engine = NULL;
    ropejit_rope *rope = NULL;
    float q[] = {3, 4}, cos_table[] = {0.5f}, sin_table[] = {2};
    int64_t shape[] = {1, 1, 2}, table[] = {1, 1};
    DLTensor q_t = {q, {1, 0}, 3, {2, 32, 1}, shape, NULL, 0};
    DLTensor cos_t = {cos_table, {1, 0}, 2, {2, 32, 1}, table, NULL, 0}, sin_t = cos_t;
    sin_t.data = sin_table;
    ropejit_args args = {sizeof args};
    args.q = &q_t, args.cos = &cos_t, args.sin = &sin_t;
    int failed = call_ropejit_open(&options, &engine) != ROPEJIT_STATUS_OK
        || call_ropejit_spec(engine, "f32 d2 h1/0 half_split once table=f32/half pos=implicit", &rope) != ROPEJIT_STATUS_OK
        || call_ropejit_apply(rope, &args, NULL) != ROPEJIT_STATUS_OK;
    if (failed) return fprintf(stderr, "%s\n", call_ropejit_last_error()), 1;
    if (q[0] != 3 * 0.5f - 4 * 2 || q[1] != 4 * 0.5f + 3 * 2) return fprintf(stderr, "turned to %f, %f\n", q[0], q[1]), 1;
    call_ropejit_free(rope);
    call_ropejit_close(engine);
    puts("all is well");
    return 0;
}

// Threads of a block that never wait for each other, on one core: one after another.

static inline void ropejit_blocks_of(const void* arguments, void (*run)(const void*), unsigned int first, unsigned int last) {
    unsigned int threads = blockDim.x * blockDim.y * blockDim.z;
    for (unsigned int b = first; b < last; ++b) {
        ropejit_enter(b);
        for (unsigned int t = 0; t < threads; ++t) {
            ropejit_place(t);
            run(arguments);
        }
    }
}

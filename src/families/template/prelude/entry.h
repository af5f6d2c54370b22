
// What the host device calls: blocks `first..last` of a launch, with pointers to the values of the kernel's parameters.
template <unsigned int... I> struct ropejit_numbers {};
template <unsigned int N, unsigned int... I> struct ropejit_upto : ropejit_upto<N - 1, N - 1, I...> {};
template <unsigned int... I> struct ropejit_upto<0, I...> {
    typedef ropejit_numbers<I...> type;
};

template <typename... P, unsigned int... I>
static inline void ropejit_call(void (*kernel)(P...), const void* const* args, ropejit_numbers<I...>) {
    kernel(*(P*)args[I]...);
}

template <typename... P> static inline void ropejit_thread(void (*kernel)(P...), const void* const* args) {
    ropejit_call(kernel, args, typename ropejit_upto<sizeof...(P)>::type());
}

static void ropejit_run(const void* args) { ropejit_thread(&ROPEJIT_ENTRY, (const void* const*)args); }

extern "C" void ROPEJIT_BLOCKS(const void* const* args, const unsigned int* geometry, unsigned int first, unsigned int last) {
    ropejit_here.blocks = dim3{geometry[0], geometry[1], geometry[2]};
    ropejit_here.threads = dim3{geometry[3], geometry[4], geometry[5]};
    ropejit_blocks_of((const void*)args, &ropejit_run, first, last);
}

#ifdef ROPEJIT_FIBERS
// What the host device asks after a launch: whether a thread has used more than its stack.
extern "C" unsigned int ROPEJIT_FAULT() { return __atomic_load_n(&ropejit_fault, __ATOMIC_RELAXED); }
#endif

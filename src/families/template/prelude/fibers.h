// Threads of a block that wait for each other, on one core: fibers, each with its own stack, that take turns. A barrier lets
// the others run until all that are left have come to it; a warp's exchange of values is two barriers of the warp.
// A warp's operations are for all of its threads that have not returned: their mask is not looked at.

#include <stdlib.h>

#define ROPEJIT_FIBERS 1

#if defined(__x86_64__)
asm(".text\n"
    ".local ropejit_switch\n"
    "ropejit_switch:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  ret\n");
#define ROPEJIT_RETURN 6  // where that address lies
#define ROPEJIT_FRAME 8   // words from the stack's end: after the return it is aligned as after a call
#elif defined(__aarch64__)
asm(".text\n"
    ".local ropejit_switch\n"
    "ropejit_switch:\n"
    "  sub sp, sp, #160\n"
    "  stp x19, x20, [sp, #0]\n  stp x21, x22, [sp, #16]\n  stp x23, x24, [sp, #32]\n  stp x25, x26, [sp, #48]\n"
    "  stp x27, x28, [sp, #64]\n  stp x29, x30, [sp, #80]\n"
    "  stp d8, d9, [sp, #96]\n  stp d10, d11, [sp, #112]\n  stp d12, d13, [sp, #128]\n  stp d14, d15, [sp, #144]\n"
    "  mov x9, sp\n  str x9, [x0]\n  mov sp, x1\n"
    "  ldp x19, x20, [sp, #0]\n  ldp x21, x22, [sp, #16]\n  ldp x23, x24, [sp, #32]\n  ldp x25, x26, [sp, #48]\n"
    "  ldp x27, x28, [sp, #64]\n  ldp x29, x30, [sp, #80]\n"
    "  ldp d8, d9, [sp, #96]\n  ldp d10, d11, [sp, #112]\n  ldp d12, d13, [sp, #128]\n  ldp d14, d15, [sp, #144]\n"
    "  add sp, sp, #160\n"
    "  ret\n");
#define ROPEJIT_RETURN 11
#define ROPEJIT_FRAME 20
#else
#error "a kernel whose threads wait for each other runs on x86-64 and aarch64 processors only"
#endif

// Saves where this stack stands, and goes on where the other one does.
extern "C" void ropejit_switch(void** from, void* to) __asm__("ropejit_switch");

// Threads that wait for each other.
struct ropejit_group {
    unsigned int left, come;      // that have not returned, and that are at the barrier
    unsigned long long turn;      // barriers that are behind
    unsigned long long given[32]; // what a warp's threads show each other
};

struct ropejit_fiber {
    void* at;
    ropejit_group* waits;  // at a barrier of this group, until its turn has changed
    unsigned long long turn;
    bool done;
};

static thread_local struct {
    void* scheduler;
    ropejit_fiber* fibers;
    ropejit_group* block;
    ropejit_group* warps;
    unsigned int self;
    bool overflowed;
    void (*run)(const void*);
    const void* arguments;
} ropejit_crew;

static inline void ropejit_wait(ropejit_group* group) {
    if (++group->come == group->left) {
        group->come = 0;
        ++group->turn;
        return;
    }
    ropejit_fiber* self = &ropejit_crew.fibers[ropejit_crew.self];
    self->waits = group;
    self->turn = group->turn;
    ropejit_switch(&self->at, ropejit_crew.scheduler);
}

static inline void ropejit_leave(ropejit_group* group) {
    if (--group->left == group->come && group->come) {
        group->come = 0;
        ++group->turn;
    }
}

static void ropejit_begin() {
    ropejit_crew.run(ropejit_crew.arguments);
    ropejit_fiber* self = &ropejit_crew.fibers[ropejit_crew.self];
    self->done = true;
    ropejit_group* warp = &ropejit_crew.warps[ropejit_crew.self / 32];
    warp->given[ropejit_crew.self % 32] = 0;
    ropejit_leave(warp);
    ropejit_leave(ropejit_crew.block);
    ropejit_switch(&self->at, ropejit_crew.scheduler);
}

#define ROPEJIT_STACK (64u << 10)
// At a stack's end; what is written past it has changed them.
#define ROPEJIT_MARKS 8
#define ROPEJIT_MARK 0x6b63617473666f65ull

// A thread has used more than its stack. It stays: other memory may have been written to.
static unsigned int ropejit_fault;

static inline unsigned long long* ropejit_end(char* stacks, unsigned int thread) {
    return (unsigned long long*)(stacks + (size_t)thread * ROPEJIT_STACK);
}

static inline bool ropejit_intact(char* stacks, unsigned int thread) {
    const volatile unsigned long long* end = ropejit_end(stacks, thread);
    for (int i = 0; i < ROPEJIT_MARKS; ++i)
        if (end[i] != ROPEJIT_MARK) return false;
    return true;
}

// Runs the threads of one block. Where all that are left wait for what cannot come, it is given up: what they would have
// written is missing, which a check reports.
static void ropejit_block(char* stacks, ropejit_fiber* fibers, ropejit_group* groups, unsigned int threads) {
    ropejit_crew.fibers = fibers;
    ropejit_crew.block = groups;
    ropejit_crew.warps = groups + 1;
    groups[0] = ropejit_group{threads, 0, 0, {}};
    for (unsigned int w = 0; w * 32 < threads; ++w) {
        unsigned int lanes = threads - w * 32 < 32 ? threads - w * 32 : 32;
        groups[1 + w] = ropejit_group{lanes, 0, 0, {}};
    }
    for (unsigned int t = 0; t < threads; ++t) {
        void** top = (void**)(stacks + (size_t)(t + 1) * ROPEJIT_STACK) - ROPEJIT_FRAME;
        for (int i = 0; i < ROPEJIT_FRAME; ++i) top[i] = 0;
        top[ROPEJIT_RETURN] = (void*)ropejit_begin;
        fibers[t] = ropejit_fiber{top, 0, 0, false};
    }
    for (unsigned int left = threads, moved = 1; left && moved;) {
        moved = 0;
        for (unsigned int t = 0; t < threads; ++t) {
            ropejit_fiber* fiber = &fibers[t];
            if (fiber->done || (fiber->waits && fiber->waits->turn == fiber->turn)) continue;
            fiber->waits = 0;
            moved = 1;
            ropejit_crew.self = t;
            ropejit_place(t);
            ropejit_switch(&ropejit_crew.scheduler, fiber->at);
            if (!ropejit_intact(stacks, t)) {
                // The stack below is another thread's, which must not go on.
                __atomic_store_n(&ropejit_fault, 1u, __ATOMIC_RELAXED);
                ropejit_crew.overflowed = true;
                return;
            }
            left -= fiber->done;
        }
    }
}

static inline void ropejit_blocks_of(const void* arguments, void (*run)(const void*), unsigned int first, unsigned int last) {
    unsigned int threads = blockDim.x * blockDim.y * blockDim.z;
    // Below the first is room for what it writes past its end.
    char* memory = (char*)aligned_alloc(4096, (size_t)(threads + 1) * ROPEJIT_STACK);
    ropejit_fiber* fibers = (ropejit_fiber*)malloc(threads * sizeof(ropejit_fiber));
    ropejit_group* groups = (ropejit_group*)malloc((1 + (threads + 31) / 32) * sizeof(ropejit_group));
    if (!memory || !fibers || !groups) abort();  // a launch cannot say that it did not run
    char* stacks = memory + ROPEJIT_STACK;
    for (unsigned int t = 0; t < threads; ++t)
        for (int i = 0; i < ROPEJIT_MARKS; ++i) ropejit_end(stacks, t)[i] = ROPEJIT_MARK;
    ropejit_crew.run = run;
    ropejit_crew.arguments = arguments;
    ropejit_crew.overflowed = false;
    for (unsigned int b = first; b < last && !ropejit_crew.overflowed; ++b) {
        ropejit_enter(b);
        ropejit_block(stacks, fibers, groups, threads);
    }
    free(groups);
    free(fibers);
    free(memory);
}

static inline ropejit_group* ropejit_warp() { return &ropejit_crew.warps[ropejit_crew.self / 32]; }
static inline unsigned int ropejit_lane() { return ropejit_crew.self % 32; }

static inline void __syncthreads() { ropejit_wait(ropejit_crew.block); }
static inline void __syncwarp(unsigned int = ~0u) { ropejit_wait(ropejit_warp()); }

// Shows the warp a value, and sees what the thread of a lane shows.
template <typename T> static inline T ropejit_exchange(T value, unsigned int lane) {
    static_assert(sizeof(T) <= 8, "a warp exchanges values of 8 bytes at most");
    ropejit_group* warp = ropejit_warp();
    __builtin_memcpy(&warp->given[ropejit_lane()], &value, sizeof(T));
    ropejit_wait(warp);
    T seen;
    __builtin_memcpy(&seen, &warp->given[lane % 32], sizeof(T));
    ropejit_wait(warp);
    return seen;
}
template <typename T> static inline T __shfl_sync(unsigned int, T x, int from, int width = 32) {
    unsigned int lane = ropejit_lane();
    return ropejit_exchange(x, lane / width * width + (unsigned int)from % width);
}
template <typename T> static inline T __shfl_xor_sync(unsigned int, T x, int with, int width = 32) {
    unsigned int lane = ropejit_lane(), other = lane ^ (unsigned int)with;
    return ropejit_exchange(x, other / width <= lane / width ? other : lane);
}
template <typename T> static inline T __shfl_down_sync(unsigned int, T x, unsigned int by, int width = 32) {
    unsigned int lane = ropejit_lane();
    return ropejit_exchange(x, lane % width + by < (unsigned int)width ? lane + by : lane);
}
template <typename T> static inline T __shfl_up_sync(unsigned int, T x, unsigned int by, int width = 32) {
    unsigned int lane = ropejit_lane();
    return ropejit_exchange(x, lane % width >= by ? lane - by : lane);
}
static inline unsigned int __ballot_sync(unsigned int, int yes) {
    ropejit_group* warp = ropejit_warp();
    warp->given[ropejit_lane()] = yes != 0;
    ropejit_wait(warp);
    unsigned int all = 0;
    for (unsigned int lane = 0; lane < 32; ++lane) all |= (unsigned int)(warp->given[lane] & 1) << lane;
    ropejit_wait(warp);
    warp->given[ropejit_lane()] = 0;
    return all;
}
static inline int __any_sync(unsigned int mask, int yes) { return __ballot_sync(mask, yes) != 0; }
static inline int __all_sync(unsigned int mask, int yes) { return __ballot_sync(mask, !yes) == 0; }
static inline unsigned int __activemask() { return ~0u; }

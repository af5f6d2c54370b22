// Atomics on the processor: blocks run on several cores. Each returns what was there.

template <typename T> struct ropejit_same { typedef T type; };
#define ROPEJIT_VALUE typename ropejit_same<T>::type

template <typename T, typename F> static inline T ropejit_atomic(T* at, F change) {
    T seen, next;
    __atomic_load(at, &seen, __ATOMIC_SEQ_CST);
    do next = change(seen);
    while (!__atomic_compare_exchange(at, &seen, &next, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
    return seen;
}
template <typename T> static inline T atomicAdd(T* at, ROPEJIT_VALUE x) {
    return ropejit_atomic(at, [=](T seen) { return (T)(seen + x); });
}
template <typename T> static inline T atomicSub(T* at, ROPEJIT_VALUE x) {
    return ropejit_atomic(at, [=](T seen) { return (T)(seen - x); });
}
template <typename T> static inline T atomicMax(T* at, ROPEJIT_VALUE x) {
    return ropejit_atomic(at, [=](T seen) { return seen < x ? x : seen; });
}
template <typename T> static inline T atomicMin(T* at, ROPEJIT_VALUE x) {
    return ropejit_atomic(at, [=](T seen) { return x < seen ? x : seen; });
}
template <typename T> static inline T atomicExch(T* at, ROPEJIT_VALUE x) {
    return ropejit_atomic(at, [=](T) { return x; });
}
template <typename T> static inline T atomicCAS(T* at, ROPEJIT_VALUE expected, ROPEJIT_VALUE x) {
    return ropejit_atomic(at, [=](T seen) { return seen == expected ? x : seen; });
}

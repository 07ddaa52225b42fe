/* A pool of threads that sleep after a short spin, so that whoever runs next has the cores.
 *
 * One call at a time has the pool; another that comes meanwhile runs on its own thread.
 */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "octavo.h"

enum { MOST = 256, SPINS = 1000, SPINS_AT_BARRIER = 4000 };

static pthread_mutex_t in_use = PTHREAD_MUTEX_INITIALIZER, lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t called = PTHREAD_COND_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int workers; /* that exist, beside the caller */
/* Which call this is, and how many threads take part: one word, so that they are read together. */
static _Atomic uint64_t call_and_threads;
static _Atomic int running;
static octavo_task current;
static void *current_context;

static inline void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static uint64_t next_call(uint64_t seen) {
    for (int spin = 0; spin < SPINS; spin++) {
        uint64_t now = atomic_load_explicit(&call_and_threads, memory_order_acquire);
        if (now != seen) return now;
        relax();
    }
    uint64_t now;
    pthread_mutex_lock(&lock);
    while ((now = atomic_load(&call_and_threads)) == seen) pthread_cond_wait(&called, &lock);
    pthread_mutex_unlock(&lock);
    return now;
}

typedef struct {
    int thread;
    uint64_t seen;
} Start;

static Start starts[MOST];

static void *work(void *argument) {
    const Start *start = argument;
    int thread = start->thread;
    uint64_t seen = start->seen;
    for (;;) {
        seen = next_call(seen);
        int threads = (int)(seen & 0xffff);
        if (thread < threads) { /* else the call does not wait for this one */
            current(current_context, thread, threads);
            atomic_fetch_sub_explicit(&running, 1, memory_order_release);
        }
    }
    return NULL;
}

static void forget_threads(void) { /* a forked process has none of them */
    workers = 0;
    running = 0;
    pthread_mutex_init(&in_use, NULL);
    pthread_mutex_init(&lock, NULL);
    pthread_cond_init(&called, NULL);
}

static void watch_forks(void) { pthread_atfork(NULL, NULL, forget_threads); }

/* Make threads, up to so many workers; returns how many there are. */
static int with_workers(int wanted) {
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    while (workers < wanted) {
        pthread_t made;
        starts[workers] = (Start){workers + 1, atomic_load(&call_and_threads)};
        if (pthread_create(&made, &attributes, work, &starts[workers])) break;
        workers++;
    }
    pthread_attr_destroy(&attributes);
    return workers < wanted ? workers : wanted;
}

void octavo_in_threads(octavo_task task, void *context, int threads) {
    if (threads > MOST) threads = MOST;
    if (threads < 2 || pthread_mutex_trylock(&in_use)) {
        task(context, 0, 1);
        return;
    }
    pthread_once(&once, watch_forks);
    threads = 1 + with_workers(threads - 1);
    current = task;
    current_context = context;
    atomic_store(&running, threads - 1);
    pthread_mutex_lock(&lock);
    uint64_t call = (atomic_load(&call_and_threads) >> 16) + 1;
    atomic_store_explicit(
        &call_and_threads, call << 16 | (uint64_t)threads, memory_order_release);
    pthread_cond_broadcast(&called);
    pthread_mutex_unlock(&lock);
    task(context, 0, threads);
    for (unsigned spin = 0; atomic_load_explicit(&running, memory_order_acquire); spin++)
        spin < SPINS_AT_BARRIER ? relax() : (void)sched_yield();
    pthread_mutex_unlock(&in_use);
}

void octavo_wait(octavo_barrier *barrier, int threads) {
    if (threads < 2) return;
    unsigned phase = atomic_load_explicit(&barrier->phase, memory_order_acquire);
    if (atomic_fetch_add_explicit(&barrier->arrived, 1, memory_order_acq_rel) + 1 ==
        (unsigned)threads) {
        atomic_store_explicit(&barrier->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&barrier->phase, phase + 1, memory_order_release);
        return;
    }
    for (unsigned spin = 0; atomic_load_explicit(&barrier->phase, memory_order_acquire) == phase; spin++)
        spin < SPINS_AT_BARRIER ? relax() : (void)sched_yield();
}

/* A pool of threads that wait a moment for the next call and then sleep.
 *
 * A call is some stages, one after the other, each of which is cut into chunks. Each thread begins with
 * a row of neighbours of its own, which are the same part of an image in each stage: what a core reads
 * is mostly what it wrote. Whoever has done these takes what others have left, so a thread that wakes
 * up late, or that the machine takes away, holds nobody up for longer than its own chunk. One call at
 * a time has the pool; another that comes meanwhile runs on its own thread.
 */
#define _GNU_SOURCE /* for affinities, where the system is Linux */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <time.h>

#include "octavo.h"

/* Of a model's layers one calls soon after the other: to wake a thread takes longer than most gaps
 * between them. So a thread waits for a millisecond, most of it for nothing but its turn: whatever
 * else wants to run on its core runs. */
enum { MOST = 256, SPINS = 2000, YIELDS_AT_ONCE = 32, WAIT_NANOSECONDS = 1000000 };
enum { CHUNKS_OF_A_THREAD = 8, CHUNK_BITS = 24 };

static pthread_mutex_t in_use = PTHREAD_MUTEX_INITIALIZER, lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t called = PTHREAD_COND_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int workers; /* that exist, beside the caller */
static pthread_t made[MOST];

/* The door of the pool: a number that is odd while a call may be entered, << 16, and how many
 * workers are inside. */
static _Atomic uint64_t door;
/* Of the call: its stages, how many, and the workers that may enter. */
static const octavo_stage *stages;
static int stage_count, wanted;
/* The first stage of the call, counted from 1 over all calls; the one that is under way, and how many chunks
 * of it are done. */
static uint64_t first_stage;
static _Atomic uint64_t stage = 1;
static _Atomic int done;
/* Of each thread's row of chunks: the stage << CHUNK_BITS, and the next chunk. What is there of an
 * earlier stage means that nobody has begun. */
typedef struct {
    _Alignas(64) _Atomic uint64_t next;
} Row;
static Row rows[MOST];

static inline void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static inline void wait_a_bit(unsigned spin) { spin < SPINS ? relax() : (void)sched_yield(); }

static int64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* The next chunk of a thread's row in a stage; -1 where none is left. */
static int taken_from(Row *row, uint64_t now, int begin, int end) {
    uint64_t seen = atomic_load_explicit(&row->next, memory_order_acquire);
    for (;;) {
        uint64_t of = seen >> CHUNK_BITS;
        if (of > now) return -1; /* the stage is over */
        int chunk = of == now ? (int)(seen & (((uint64_t)1 << CHUNK_BITS) - 1)) : begin;
        if (chunk >= end) return -1;
        if (atomic_compare_exchange_weak_explicit(
                &row->next, &seen, now << CHUNK_BITS | (uint64_t)(chunk + 1), memory_order_acq_rel,
                memory_order_acquire))
            return chunk;
    }
}

/* The next chunk for a thread of so many, of its own row or of another's; -1 where none is left. */
static int taken(uint64_t now, int chunks, int thread, int threads) {
    for (int other = 0; other < threads; other++) {
        int at = (thread + other) % threads;
        int begin = (int)((int64_t)chunks * at / threads);
        int end = (int)((int64_t)chunks * (at + 1) / threads);
        int chunk = taken_from(rows + at, now, begin, end);
        if (chunk >= 0) return chunk;
    }
    return -1;
}

/* Take chunks until the last stage is done. */
static void take_chunks(const octavo_stage *all, int count, int thread, int threads) {
    unsigned spin = 0;
    for (;;) {
        uint64_t now = atomic_load_explicit(&stage, memory_order_acquire);
        if (now - first_stage >= (uint64_t)count) return;
        const octavo_stage *at = all + (now - first_stage);
        if (!at->chunks) { /* done before it began: whoever comes first says so */
            atomic_compare_exchange_strong_explicit(
                &stage, &now, now + 1, memory_order_acq_rel, memory_order_relaxed);
            continue;
        }
        int chunk = taken(now, at->chunks, thread, threads);
        if (chunk < 0) { /* others are still at it */
            wait_a_bit(spin++);
            continue;
        }
        at->task(at->context, chunk, at->chunks);
        spin = 0;
        if (atomic_fetch_add_explicit(&done, 1, memory_order_acq_rel) + 1 == at->chunks) {
            atomic_store_explicit(&done, 0, memory_order_relaxed);
            atomic_store_explicit(&stage, now + 1, memory_order_release);
        }
    }
}

static int is_new(uint64_t seen, uint64_t *call) {
    *call = atomic_load_explicit(&door, memory_order_acquire) >> 16;
    return (*call & 1) && *call != seen;
}

/* Wait for a call that was not seen. */
static uint64_t next_call(uint64_t seen) {
    uint64_t call;
    for (int spin = 0; spin < SPINS; spin++) {
        if (is_new(seen, &call)) return call;
        relax();
    }
    for (int64_t start = nanoseconds(); nanoseconds() - start < WAIT_NANOSECONDS;)
        for (int yield = 0; yield < YIELDS_AT_ONCE; yield++) {
            if (is_new(seen, &call)) return call;
            sched_yield();
        }
    pthread_mutex_lock(&lock);
    while (!is_new(seen, &call)) pthread_cond_wait(&called, &lock);
    pthread_mutex_unlock(&lock);
    return call;
}

static void *work(void *argument) {
    int worker = (int)(intptr_t)argument;
    uint64_t call = 0;
    for (;;) {
        call = next_call(call);
        uint64_t now = atomic_load(&door);
        while (now >> 16 == call)
            if (atomic_compare_exchange_weak(&door, &now, now + 1)) {
                if (worker < wanted) take_chunks(stages, stage_count, worker + 1, wanted + 1);
                atomic_fetch_sub_explicit(&door, 1, memory_order_release);
                break;
            }
    }
    return NULL;
}

/* ---- where workers run ---- */

#if defined(__linux__)

static int avoided = -1;     /* the CPU that workers keep off; -1: none */
enum { UNKNOWN_CPU = -2 };
static cpu_set_t everywhere; /* where they may run, but for that; empty: nobody has said */

static void let_workers_run_on(const cpu_set_t *cpus) {
    for (int worker = 0; worker < workers; worker++)
        pthread_setaffinity_np(made[worker], sizeof *cpus, cpus);
}

/* In a virtual machine a CPU that sleeps looks as if the host had taken it away, so that Linux wakes
 * threads on the CPU of their waker: there they begin when the call is nearly over, or take the CPU from it,
 * while the other CPUs go on sleeping. So workers keep off the CPU of the caller, as long as there is one for
 * each of them among those that the caller may run on. Who may run on a single one has said where it is itself,
 * and nothing of workers. */
static void keep_off_this_cpu(void) {
    int cpu = sched_getcpu();
    cpu_set_t all, others;
    if (cpu < 0 || sched_getaffinity(0, sizeof all, &all)) return;
    if (CPU_COUNT(&all) == 1 && CPU_COUNT(&everywhere)) all = everywhere;
    others = all;
    CPU_CLR(cpu, &others);
    int avoids = CPU_COUNT(&others) >= workers ? cpu : -1;
    if (avoids == avoided && CPU_EQUAL(&all, &everywhere)) return;
    let_workers_run_on(avoids < 0 ? &all : &others);
    everywhere = all;
    avoided = avoids;
}

static void forget_cpu(void) { avoided = UNKNOWN_CPU; }

#else

static void keep_off_this_cpu(void) {}
static void forget_cpu(void) {}

#endif

/* ---- threads ---- */

/* A forked process has no workers. Where it was forked amid a call, its next call has the number of that
 * stage: nothing may be taken of it. */
static void forget_threads(void) {
    workers = 0;
    forget_cpu();
    door = 0;
    done = 0;
    for (int thread = 0; thread < MOST; thread++) rows[thread].next = 0;
    pthread_mutex_init(&in_use, NULL);
    pthread_mutex_init(&lock, NULL);
    pthread_cond_init(&called, NULL);
}

static void watch_forks(void) { pthread_atfork(NULL, NULL, forget_threads); }

/* Make threads, up to so many workers; returns how many there are. */
static int with_workers(int most) {
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    for (; workers < most; workers++, forget_cpu())
        if (pthread_create(made + workers, &attributes, work, (void *)(intptr_t)workers)) break;
    pthread_attr_destroy(&attributes);
    return workers < most ? workers : most;
}

/* With the pool in hand. */
static void run_together(const octavo_stage *all, int count, int helpers) {
    keep_off_this_cpu();
    stages = all;
    stage_count = count;
    wanted = helpers;
    first_stage = atomic_load_explicit(&stage, memory_order_relaxed);
    uint64_t call = (atomic_load_explicit(&door, memory_order_relaxed) >> 16) + 1;
    pthread_mutex_lock(&lock);
    atomic_store_explicit(&door, call << 16, memory_order_release);
    pthread_cond_broadcast(&called);
    pthread_mutex_unlock(&lock);
    take_chunks(all, count, 0, helpers + 1);
    uint64_t empty = call << 16;
    for (unsigned spin = 0; !atomic_compare_exchange_weak_explicit(
             &door, &empty, (call + 1) << 16, memory_order_acq_rel, memory_order_relaxed);
         spin++, empty = call << 16)
        wait_a_bit(spin);
}

int octavo_chunks(int64_t parts, int threads) {
    int most = threads < 2 ? 1 : threads * CHUNKS_OF_A_THREAD;
    return parts < most ? (int)parts : most;
}

void octavo_run_stages(const octavo_stage *all, int count, int threads) {
    if (threads > MOST) threads = MOST;
    if (threads < 2 || pthread_mutex_trylock(&in_use)) {
        for (int at = 0; at < count; at++)
            for (int chunk = 0; chunk < all[at].chunks; chunk++)
                all[at].task(all[at].context, chunk, all[at].chunks);
        return;
    }
    pthread_once(&once, watch_forks);
    run_together(all, count, with_workers(threads - 1));
    pthread_mutex_unlock(&in_use);
}

void octavo_in_threads(octavo_task task, void *context, int threads) {
    if (threads > MOST) threads = MOST;
    if (threads < 2 || pthread_mutex_trylock(&in_use)) {
        task(context, 0, 1);
        return;
    }
    pthread_once(&once, watch_forks);
    int helpers = with_workers(threads - 1);
    octavo_stage stage = {task, context, helpers + 1};
    run_together(&stage, 1, helpers);
    pthread_mutex_unlock(&in_use);
}

// Blocks of threads: every thread is a fibre with a stack of its own, which gives the processor away only where it waits for others.
//
// EMULATED_ORDER: `forward` (the default), `reverse`, or `random` or `random:SEED` for blocks, warps and lanes between the points where they
// wait, so that races show. EMULATED_THREADS: processors that work on blocks, all by default.

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "device.h"

// Saves where the running fibre is, and goes on with another.
extern "C" void emulated_switch(void** save, void* load);
asm(R"(
.text
.globl emulated_switch
.hidden emulated_switch
.type emulated_switch, @function
emulated_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulated_switch, . - emulated_switch
)");

namespace emulated {

thread_local Place* here = nullptr;

namespace {

constexpr unsigned MAX_THREADS = 1024, WARP = 32, MAX_WARPS = MAX_THREADS / WARP;
constexpr size_t STACK = 128 << 10, PAGE = 4096, SHARED = 256 << 10, RED_ZONE = 16;
constexpr int POISON = 0xff, RED = 0xa5;

enum class Order { Forward, Reverse, Random };

struct Settings {
    Order order = Order::Forward;
    unsigned seed = 1;
    Settings() {
        const char* text = getenv("EMULATED_ORDER");
        std::string wanted = text ? text : "forward";
        if (wanted == "reverse") order = Order::Reverse;
        else if (wanted.rfind("random", 0) == 0) {
            order = Order::Random;
            if (wanted.size() > 7) seed = strtoul(wanted.c_str() + 7, nullptr, 10);
        } else if (wanted != "forward") {
            fprintf(stderr, "emulated GPU: EMULATED_ORDER is forward, reverse, random or random:SEED, not %s\n", text);
            abort();
        }
    }
};
const Settings& settings() {
    static const Settings settings;
    return settings;
}

struct Copy {
    void* to;
    const void* from;
    unsigned there, group;
};

struct Fibre {
    void* stack_pointer;
    Place place;
    unsigned warp, lane;
    std::vector<Copy> copies;
    unsigned groups;  // committed so far
};

// Lanes of a warp that wait for each other.
struct Meeting {
    unsigned mask = 0, arrived = 0;
    Work work = nullptr;
    void* parts[WARP];
};

struct Warp {
    unsigned alive, ready;  // a bit for each lane; the running fibre is not ready
    std::vector<Meeting> meetings;
};

struct Variable {
    const void* key;
    char* at;
    size_t bytes;
};

char* map(size_t bytes) {
    void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) {
        perror("emulated GPU: mmap");
        abort();
    }
    return (char*)at;
}

// One thread of the processor, which runs one block at a time.
struct Worker {
    Fibre fibres[MAX_THREADS];
    Warp warps[MAX_WARPS];
    Fibre* running = nullptr;
    void* outside = nullptr;  // where `run_block` waits
    const Launch* launch = nullptr;
    unsigned alive = 0, at_barrier = 0, n_warps = 0;
    std::minstd_rand random;
    std::vector<Variable> variables;
    size_t static_bytes = 0;
    char* stacks = map(MAX_THREADS * STACK);
    // A page that nobody may touch behind each: dynamic shared memory ends where its page does.
    char* statics = map(SHARED + PAGE);
    char* dynamics = map(SHARED + PAGE);

    Worker() {
        for (unsigned i = 0; i < MAX_THREADS; ++i) mprotect(stacks + i * STACK, PAGE, PROT_NONE);
        mprotect(statics + SHARED, PAGE, PROT_NONE);
        mprotect(dynamics + SHARED, PAGE, PROT_NONE);
    }

    ~Worker() {
        munmap(stacks, MAX_THREADS * STACK);
        munmap(statics, SHARED + PAGE);
        munmap(dynamics, SHARED + PAGE);
    }

    char* dynamic() { return dynamics + SHARED - (launch->dynamic_bytes + 15) / 16 * 16; }
    void run_block(const Launch& launch, Index block);
    Fibre* next();
    void go_on_with(Fibre* fibre);
    // Gives the processor away until somebody has made this fibre ready.
    void wait() { go_on_with(next()); }
    void barrier_if_all_are_there();
    void finish(Warp& warp, Meeting& meeting);
    void meet_if_all_are_there(Warp& warp, Meeting& meeting);
    [[noreturn]] void end();
};

Worker& worker() {
    static thread_local std::unique_ptr<Worker> own;
    if (!own) own = std::make_unique<Worker>();
    return *own;
}

thread_local Worker* current = nullptr;

void enter() {
    current->launch->body();
    current->end();
}

void Worker::run_block(const Launch& what, Index block) {
    launch = &what;
    const Index& size = what.threads;
    alive = size.x * size.y * size.z;
    n_warps = (alive + WARP - 1) / WARP;
    at_barrier = 0;
    variables.clear();
    memset(statics, POISON, static_bytes);
    static_bytes = 0;
    memset(dynamic(), POISON, dynamics + SHARED - dynamic());
    random.seed(settings().seed + block.x + 7919 * block.y + 104729 * block.z);
    for (unsigned i = 0; i < alive; ++i) {
        Fibre& fibre = fibres[i];
        fibre.place = {{i % size.x, i / size.x % size.y, i / size.x / size.y}, block, size, what.blocks};
        fibre.warp = i / WARP, fibre.lane = i % WARP;
        fibre.copies.clear(), fibre.groups = 0;
        // As `emulated_switch` leaves a stack: six registers and where to go on. A function begins 8 bytes behind a multiple of 16. The
        // stacks begin at different places of their pages, so that they do not push each other out of the caches.
        void** top = (void**)(stacks + (i + 1) * STACK - 64 - i % 64 * 448);
        top[0] = (void*)enter;
        fibre.stack_pointer = top - 6;
    }
    for (unsigned i = 0; i < n_warps; ++i) {
        unsigned lanes = std::min(WARP, alive - i * WARP);
        warps[i].alive = warps[i].ready = lanes == WARP ? ~0u : (1u << lanes) - 1;
        warps[i].meetings.clear();
    }
    current = this;
    running = nullptr;
    Fibre* first = next();
    warps[first->warp].ready &= ~(1u << first->lane);
    running = first, here = &first->place;
    emulated_switch(&outside, first->stack_pointer);
    for (const Variable& variable : variables) {
        for (size_t i = 0; i < RED_ZONE; ++i) {
            if ((unsigned char)variable.at[variable.bytes + i] != RED) fail("wrote behind a shared variable");
        }
    }
    here = nullptr;
}

unsigned bit_from(unsigned bits, unsigned first) {
    unsigned behind = first < WARP ? bits >> first << first : 0;
    return __builtin_ctz(behind ? behind : bits);
}

Fibre* Worker::next() {
    unsigned warp = running ? running->warp : 0, lane = running ? running->lane : 0;
    Order order = settings().order;
    if (order == Order::Random) warp = random() % n_warps;
    else if (order == Order::Reverse && !running) warp = n_warps - 1;
    for (unsigned i = 0; i < n_warps; ++i) {
        Warp& found = warps[warp];
        if (found.ready) {
            switch (order) {
            case Order::Forward: lane = bit_from(found.ready, i == 0 && running ? lane + 1 : 0); break;
            case Order::Reverse: lane = 31 - __builtin_clz(found.ready); break;
            case Order::Random: lane = bit_from(found.ready, random() % WARP); break;
            }
            return &fibres[warp * WARP + lane];
        }
        warp = order == Order::Reverse ? (warp + n_warps - 1) % n_warps : (warp + 1) % n_warps;
    }
    fail("the threads of a block wait for each other: some at __syncthreads, or lanes at different instructions of a warp");
}

void Worker::go_on_with(Fibre* fibre) {
    Fibre* from = running;
    warps[fibre->warp].ready &= ~(1u << fibre->lane);
    running = fibre, here = &fibre->place;
    emulated_switch(&from->stack_pointer, fibre->stack_pointer);
}

void Worker::barrier_if_all_are_there() {
    if (at_barrier == 0 || at_barrier < alive) return;
    at_barrier = 0;
    for (unsigned i = 0; i < n_warps; ++i) warps[i].ready = warps[i].alive;
    Warp& own = warps[running->warp];
    own.ready &= ~(1u << running->lane);
}

void Worker::finish(Warp& warp, Meeting& meeting) {
    unsigned arrived = meeting.arrived;
    meeting.arrived = 0;
    meeting.work(meeting.parts, arrived);
    warp.ready |= arrived;
    warp.ready &= ~(1u << running->lane);
}

// Lanes that have ended are not waited for.
void Worker::meet_if_all_are_there(Warp& warp, Meeting& meeting) {
    if (meeting.arrived && (meeting.mask & warp.alive & ~meeting.arrived) == 0) finish(warp, meeting);
}

void Worker::end() {
    Warp& warp = warps[running->warp];
    warp.alive &= ~(1u << running->lane);
    --alive;
    if (alive == 0) {
        void* ignored;
        emulated_switch(&ignored, outside);
    }
    for (Meeting& meeting : warp.meetings) meet_if_all_are_there(warp, meeting);
    barrier_if_all_are_there();
    wait();
    abort();
}

}  // namespace

void fail(const char* what) {
    if (current && current->launch && here) {
        const Place& at = *here;
        fprintf(stderr, "emulated GPU: %s, block (%u, %u, %u), thread (%u, %u, %u): %s\n", current->launch->name, at.block.x, at.block.y,
                at.block.z, at.thread.x, at.thread.y, at.thread.z, what);
    } else {
        fprintf(stderr, "emulated GPU: %s\n", what);
    }
    abort();
}

void sync_threads() {
    Worker& own = *current;
    ++own.at_barrier;
    own.barrier_if_all_are_there();
    // Whoever came last goes on.
    if (own.at_barrier > 0) own.wait();
}

void meet(unsigned mask, Work work, void* part) {
    Worker& own = *current;
    Fibre& self = *own.running;
    Warp& warp = own.warps[self.warp];
    if (!(mask >> self.lane & 1)) fail("a lane is not in the mask that it gives");
    Meeting* meeting = nullptr;
    for (Meeting& known : warp.meetings) {
        if (known.mask == mask) meeting = &known;
        else if (known.arrived && known.mask & mask & known.arrived) fail("a lane is waited for with different masks");
    }
    if (!meeting) {
        warp.meetings.emplace_back();
        meeting = &warp.meetings.back();
        meeting->mask = mask;
    }
    if (meeting->arrived && meeting->work != work) fail("the lanes of a warp meet at different instructions");
    meeting->work = work;
    meeting->parts[self.lane] = part;
    meeting->arrived |= 1u << self.lane;
    own.meet_if_all_are_there(warp, *meeting);
    // Whoever came last has done the work and goes on.
    if (meeting->arrived) own.wait();
}

void* shared_variable(const void* key, size_t bytes, size_t alignment) {
    Worker& own = *current;
    for (const Variable& known : own.variables) {
        if (known.key == key) return known.at;
    }
    // No more aligned than was asked for, so that what relies on more is found.
    size_t at = (own.static_bytes + alignment - 1) / alignment * alignment;
    if (at / alignment % 2 == 0) at += alignment;
    own.static_bytes = at + bytes + RED_ZONE;
    size_t declared = 0;
    for (const Variable& known : own.variables) declared += known.bytes;
    if (own.static_bytes > SHARED || declared + bytes + own.launch->dynamic_bytes > own.launch->shared_limit) {
        fail("a block has more shared memory than the device");
    }
    own.variables.push_back({key, own.statics + at, bytes});
    memset(own.statics + at, POISON, bytes);
    memset(own.statics + at + bytes, RED, RED_ZONE);
    return own.statics + at;
}

void* dynamic_shared_memory() { return current->dynamic(); }

void expect_shared(const void* pointer, size_t bytes) {
    const char* at = (const char*)pointer;
    Worker& own = *current;
    bool lies_within = at >= own.dynamic() && at + bytes <= own.dynamic() + own.launch->dynamic_bytes;
    for (const Variable& known : own.variables) lies_within |= at >= known.at && at + bytes <= known.at + known.bytes;
    if (!lies_within) fail("an address outside of shared memory");
    if ((uintptr_t)at % 16) fail("an address in shared memory that 16 does not divide");
}

void copy_async(void* to, const void* from, unsigned there) {
    Fibre& self = *current->running;
    expect_shared(to, 16);
    if ((uintptr_t)from % 16) fail("a copy of 16 bytes from an address that 16 does not divide");
    // Whoever reads before the copy has arrived finds no number.
    memset(to, POISON, 16);
    self.copies.push_back({to, from, there, self.groups});
}

void commit_copies() { ++current->running->groups; }

void wait_for_copies(unsigned groups) {
    Fibre& self = *current->running;
    size_t kept = 0;
    for (const Copy& copy : self.copies) {
        if (copy.group + groups < self.groups) {
            memset(copy.to, 0, 16);
            memcpy(copy.to, copy.from, copy.there);
        } else {
            self.copies[kept++] = copy;
        }
    }
    self.copies.resize(kept);
}

// --- processors ---

namespace {

// Threads that work on one task after the other.
struct Pool {
    std::mutex mutex;
    std::condition_variable begin, end;
    const std::function<void(size_t)>* work = nullptr;
    std::atomic<size_t> next{0};
    size_t n = 0, busy = 0, task = 0;
    unsigned helpers = 0;

    Pool() {
        const char* wanted = getenv("EMULATED_THREADS");
        unsigned threads = wanted ? strtoul(wanted, nullptr, 10) : std::thread::hardware_concurrency();
        for (helpers = 0; helpers + 1 < threads; ++helpers) std::thread([this] { help(); }).detach();
    }

    void do_some() {
        for (size_t i = next++; i < n; i = next++) (*work)(i);
    }

    void help() {
        size_t done = 0;
        std::unique_lock<std::mutex> lock(mutex);
        for (;;) {
            begin.wait(lock, [&] { return task != done; });
            done = task;
            lock.unlock();
            do_some();
            lock.lock();
            if (--busy == 0) end.notify_one();
        }
    }

    void run(size_t count, const std::function<void(size_t)>& what) {
        if (count == 1 || helpers == 0) {
            for (size_t i = 0; i < count; ++i) what(i);
            return;
        }
        std::unique_lock<std::mutex> lock(mutex);
        work = &what, n = count, next = 0, busy = helpers, ++task;
        begin.notify_all();
        lock.unlock();
        do_some();
        lock.lock();
        end.wait(lock, [&] { return busy == 0; });
    }
};

}  // namespace

void parallel(size_t n, const std::function<void(size_t)>& work) {
    // It is never destroyed, as its threads never end.
    static Pool& pool = *new Pool;
    pool.run(n, work);
}

void run(const Launch& launch) {
    const Index& size = launch.blocks;
    size_t n = (size_t)size.x * size.y * size.z;
    std::vector<unsigned> order;
    if (settings().order == Order::Random) {
        order.resize(n);
        for (size_t i = 0; i < n; ++i) order[i] = i;
        std::shuffle(order.begin(), order.end(), std::minstd_rand(settings().seed));
    }
    parallel(n, [&](size_t i) {
        if (settings().order == Order::Reverse) i = n - 1 - i;
        if (!order.empty()) i = order[i];
        worker().run_block(launch, {(unsigned)(i % size.x), (unsigned)(i / size.x % size.y), (unsigned)(i / size.x / size.y)});
    });
}

}  // namespace emulated

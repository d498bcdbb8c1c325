// What kernels and the emulated GPU know of each other. Kernels see it by way of kernel.h.
#pragma once

#include <cstddef>
#include <functional>

namespace emulated {

struct Index {
    unsigned x, y, z;
};

// Where the running thread is.
struct Place {
    Index thread, block, threads, blocks;
};
extern thread_local Place* here;

// Prints kernel, block and thread, and ends the program: on a card the context would be lost.
[[noreturn]] void fail(const char* what);

void sync_threads();

// Waits for the lanes of `mask`. The last to come does the `work` of all: `parts[lane]` is what each of `lanes` brought.
using Work = void (*)(void** parts, unsigned lanes);
void meet(unsigned mask, Work work, void* part);

// A shared variable of the running block, the same for every thread that asks with the same key.
void* shared_variable(const void* key, size_t bytes, size_t alignment);
void* dynamic_shared_memory();
// An error where a pointer does not lie in the block's shared memory.
void expect_shared(const void* pointer, size_t bytes);

// Asynchronous copies of 16 bytes, of which `there` are read and the rest is 0. They arrive when the thread waits for them, no sooner.
void copy_async(void* to, const void* from, unsigned there);
void commit_copies();
// Until no more than so many groups are under way.
void wait_for_copies(unsigned groups);

// A kernel takes its arguments when it is launched, and runs later.
struct Kernel {
    std::function<void()> (*bind)(void** arguments);
    unsigned max_threads;
};

// --- for the libraries ---

// Puts work at the end of a stream. It is done when somebody waits for it, no sooner.
void enqueue(void* stream, std::function<void()> work);
// On all processors.
void parallel(size_t n, const std::function<void(size_t)>& work);
// Runs a kernel on a grid.
struct Launch {
    const char* name;
    std::function<void()> body;
    Index blocks, threads;
    size_t dynamic_bytes, shared_limit;
};
void run(const Launch& launch);
// Does an address range lie within one allocation of the device?
void expect_device(const void* address, size_t bytes, const char* what);

}  // namespace emulated

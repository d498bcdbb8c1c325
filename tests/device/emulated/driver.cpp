// libcuda.so.1: the driver's functions that diagnose calls. The device's memory is the host's, between pages that nobody may touch, and
// holds no numbers until it is written. Work in a stream is done when somebody waits for it: who forgets to finds old memory.
//
// EMULATED_CAPABILITY=9.0  EMULATED_MEMORY=bytes (16 GiB)  EMULATED_SHARED=bytes a block may have (as the capability has it)
// EMULATED_DRIVER=13.0 (of CUDA so much: what later compilers made is not loaded, and later libraries do not start)

#include <dlfcn.h>
#include <elf.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <fstream>
#include <map>
#include <mutex>
#include <string>

#include "device.h"

#define API extern "C" __attribute__((visibility("default"))) int

namespace {

enum Code {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    ILLEGAL_ADDRESS = 700,
    LAUNCH_OUT_OF_RESOURCES = 701,
};

constexpr size_t PAGE = 4096, ALIGNMENT = 256;
constexpr int NO_NUMBER = 0xff, RED = 0xa5;

struct Allocation {
    char* mapped;
    size_t mapped_bytes, bytes;
};
using Allocations = std::map<uintptr_t, Allocation>;

struct Event {
    bool is_recorded = false, has_passed = false;
    std::chrono::steady_clock::time_point when;
};

struct Module {
    void* library;
};

struct Function {
    const emulated::Kernel* kernel;
    std::string name;
    int dynamic_limit;
};

struct Stream {
    std::deque<std::function<void()>> work;
};

struct Device {
    std::recursive_mutex mutex;
    Allocations memory, pinned;
    size_t allocated = 0;
    std::deque<Stream*> streams;

    size_t total() const {
        const char* text = getenv("EMULATED_MEMORY");
        return text ? strtoull(text, nullptr, 10) : size_t(16) << 30;
    }
    // `scale` times the number before the point of a variable such as 9.0, and the number behind it.
    static int scaled(const char* variable, const char* otherwise, int scale) {
        const char* text = getenv(variable);
        int major, minor;
        if (sscanf(text ? text : otherwise, "%d.%d", &major, &minor) != 2) emulated::fail((std::string(variable) + " is a number such as 9.0").c_str());
        return scale * major + minor;
    }
    int capability() const { return scaled("EMULATED_CAPABILITY", "9.0", 10); }
    int driver() const { return 10 * scaled("EMULATED_DRIVER", "13.0", 100); }
    int shared_bytes() const {
        if (const char* text = getenv("EMULATED_SHARED")) return atoi(text);
        int version = capability();
        return (version == 80 || version == 87 ? 163 : version == 86 || version == 89 || version >= 120 ? 99 : 227) << 10;
    }
};
// Never destroyed: it is used until the program ends.
Device& device() {
    static Device& device = *new Device;
    return device;
}

thread_local bool has_context = false;
int context;

#define ENTER                                        \
    if (!has_context) return INVALID_CONTEXT;        \
    std::lock_guard<std::recursive_mutex> lock(device().mutex)

// What the kernel did wrong, by the signal that it gets for it here.
void on_signal(int signal, siginfo_t* about, void*) {
    char text[200];
    const char* what = signal == SIGSEGV ? "read or wrote outside of memory" : "misaligned access, or an index out of an array's bounds";
    snprintf(text, sizeof text, "%s (at %p)", what, about->si_addr);
    emulated::fail(text);
}

void drain(Stream& stream) {
    while (!stream.work.empty()) {
        auto work = std::move(stream.work.front());
        stream.work.pop_front();
        work();
    }
}

void drain_all() {
    for (Stream* stream : device().streams) drain(*stream);
}

Allocations::iterator find(Allocations& all, const void* address) {
    auto found = all.upper_bound((uintptr_t)address);
    if (found == all.begin()) return all.end();
    --found;
    return (uintptr_t)address < found->first + found->second.bytes ? found : all.end();
}

char* allocate(Allocations& all, size_t bytes, int fill) {
    size_t padded = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT, pages = (padded + PAGE - 1) / PAGE * PAGE;
    size_t mapped_bytes = pages + 2 * PAGE;
    char* mapped = (char*)mmap(nullptr, mapped_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) return nullptr;
    mprotect(mapped + PAGE, pages, PROT_READ | PROT_WRITE);
    // Against the page behind it.
    char* address = mapped + PAGE + pages - padded;
    memset(mapped + PAGE, NO_NUMBER, pages - padded);
    memset(address, fill, bytes);
    memset(address + bytes, RED, padded - bytes);
    all[(uintptr_t)address] = {mapped, mapped_bytes, bytes};
    return address;
}

bool release(Allocations& all, void* address) {
    auto found = all.find((uintptr_t)address);
    if (found == all.end()) return false;
    const Allocation& known = found->second;
    for (const char* at = known.mapped + PAGE; at < address; ++at) {
        if ((unsigned char)*at != NO_NUMBER) emulated::fail("something wrote before the beginning of an allocation");
    }
    for (const char* at = (char*)address + known.bytes; at < known.mapped + known.mapped_bytes - PAGE; ++at) {
        if ((unsigned char)*at != RED) emulated::fail("something wrote behind the end of an allocation");
    }
    munmap(known.mapped, known.mapped_bytes);
    all.erase(found);
    return true;
}

bool is_pinned(const void* address, size_t bytes) {
    auto found = find(device().pinned, address);
    return found != device().pinned.end() && (uintptr_t)address + bytes <= found->first + found->second.bytes;
}

// A copy whose host side is pinned waits in the stream; otherwise it is done when the function returns.
int copy(void* to, const void* from, size_t bytes, const void* host, Stream* stream) {
    // Not known to be allowed.
    if (bytes == 0) return INVALID_VALUE;
    emulated::enqueue(stream, [=] { memcpy(to, from, bytes); });
    if (!is_pinned(host, bytes)) drain(*stream);
    return SUCCESS;
}

}  // namespace

namespace emulated {

void enqueue(void* stream, std::function<void()> work) {
    std::lock_guard<std::recursive_mutex> lock(device().mutex);
    ((Stream*)stream)->work.push_back(std::move(work));
}

void expect_device(const void* address, size_t bytes, const char* what) {
    auto found = find(device().memory, address);
    if (found == device().memory.end() || (uintptr_t)address + bytes > found->first + found->second.bytes) fail(what);
}

}  // namespace emulated

API cuInit(unsigned) {
    struct sigaction action = {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESETHAND;
    sigaction(SIGSEGV, &action, nullptr);
    sigaction(SIGILL, &action, nullptr);
    return SUCCESS;
}

API cuDriverGetVersion(int* version) {
    *version = device().driver();
    return SUCCESS;
}

API cuGetErrorName(int code, const char** name) {
    switch (code) {
    case SUCCESS: *name = "CUDA_SUCCESS"; break;
    case INVALID_VALUE: *name = "CUDA_ERROR_INVALID_VALUE"; break;
    case OUT_OF_MEMORY: *name = "CUDA_ERROR_OUT_OF_MEMORY"; break;
    case INVALID_DEVICE: *name = "CUDA_ERROR_INVALID_DEVICE"; break;
    case INVALID_IMAGE: *name = "CUDA_ERROR_INVALID_IMAGE"; break;
    case INVALID_CONTEXT: *name = "CUDA_ERROR_INVALID_CONTEXT"; break;
    case INVALID_HANDLE: *name = "CUDA_ERROR_INVALID_HANDLE"; break;
    case NOT_FOUND: *name = "CUDA_ERROR_NOT_FOUND"; break;
    case ILLEGAL_ADDRESS: *name = "CUDA_ERROR_ILLEGAL_ADDRESS"; break;
    case LAUNCH_OUT_OF_RESOURCES: *name = "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"; break;
    default: return INVALID_VALUE;
    }
    return SUCCESS;
}

API cuDeviceGet(int* ordinal, int index) {
    *ordinal = 0;
    return index == 0 ? SUCCESS : INVALID_DEVICE;
}

// The sources' hash is in the name: what was compiled for one emulated GPU does not run on another.
API cuDeviceGetName(char* name, int size, int) {
    std::string processor = "a processor", line;
    for (std::ifstream file("/proc/cpuinfo"); std::getline(file, line);) {
        if (line.rfind("model name", 0) == 0) {
            processor = line.substr(line.find(':') + 2);
            break;
        }
    }
    snprintf(name, size, "emulated by %s (%s)", processor.c_str(), EMULATED_SOURCES);
    return SUCCESS;
}

API cuDeviceGetAttribute(int* value, int attribute, int) {
    switch (attribute) {
    case 1: *value = 1024; break;           // threads a block
    case 10: *value = 32; break;            // lanes of a warp
    case 16: *value = 132; break;           // multiprocessors
    case 75: *value = device().capability() / 10; break;
    case 76: *value = device().capability() % 10; break;
    case 97: *value = device().shared_bytes(); break;
    default: return INVALID_VALUE;
    }
    return SUCCESS;
}

API cuDevicePrimaryCtxRetain(void** retained, int) {
    *retained = &context;
    return SUCCESS;
}

API cuCtxSetCurrent(void* wanted) {
    if (wanted != &context) return INVALID_CONTEXT;
    has_context = true;
    return SUCCESS;
}

API cuMemGetInfo_v2(size_t* free, size_t* total) {
    ENTER;
    *total = device().total();
    *free = *total - device().allocated;
    return SUCCESS;
}

API cuMemAlloc_v2(uint64_t* address, size_t bytes) {
    ENTER;
    if (bytes == 0) return INVALID_VALUE;
    if (bytes > device().total() - device().allocated) return OUT_OF_MEMORY;
    char* at = allocate(device().memory, bytes, NO_NUMBER);
    if (!at) return OUT_OF_MEMORY;
    device().allocated += bytes;
    *address = (uintptr_t)at;
    return SUCCESS;
}

API cuMemFree_v2(uint64_t address) {
    ENTER;
    drain_all();
    auto found = device().memory.find(address);
    if (found == device().memory.end()) return INVALID_VALUE;
    device().allocated -= found->second.bytes;
    release(device().memory, (void*)address);
    return SUCCESS;
}

API cuMemHostAlloc(void** address, size_t bytes, unsigned) {
    ENTER;
    *address = allocate(device().pinned, bytes, NO_NUMBER);
    return *address ? SUCCESS : OUT_OF_MEMORY;
}

API cuMemFreeHost(void* address) {
    ENTER;
    return release(device().pinned, address) ? SUCCESS : INVALID_VALUE;
}

API cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream) {
    ENTER;
    emulated::expect_device((void*)to, bytes, "a copy to what is not the device's memory");
    return copy((void*)to, from, bytes, from, (Stream*)stream);
}

API cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* stream) {
    ENTER;
    emulated::expect_device((void*)from, bytes, "a copy from what is not the device's memory");
    return copy(to, (void*)from, bytes, to, (Stream*)stream);
}

API cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void* stream) {
    ENTER;
    emulated::expect_device((void*)to, bytes, "a copy to what is not the device's memory");
    emulated::expect_device((void*)from, bytes, "a copy from what is not the device's memory");
    emulated::enqueue(stream, [=] { memmove((void*)to, (void*)from, bytes); });
    return SUCCESS;
}

API cuStreamCreate(void** stream, unsigned) {
    ENTER;
    device().streams.push_back(new Stream);
    *stream = device().streams.back();
    return SUCCESS;
}

API cuStreamSynchronize(void* stream) {
    ENTER;
    drain(*(Stream*)stream);
    return SUCCESS;
}

API cuEventCreate(void** event, unsigned) {
    ENTER;
    *event = new Event;
    return SUCCESS;
}

API cuEventDestroy_v2(void* event) {
    ENTER;
    // It may still stand in a stream.
    if (!((Event*)event)->has_passed) drain_all();
    delete (Event*)event;
    return SUCCESS;
}

API cuEventRecord(void* event, void* stream) {
    ENTER;
    auto recorded = (Event*)event;
    recorded->is_recorded = true, recorded->has_passed = false;
    emulated::enqueue(stream, [=] { recorded->has_passed = true, recorded->when = std::chrono::steady_clock::now(); });
    return SUCCESS;
}

// Only what stands before the event is done.
API cuEventSynchronize(void* event) {
    ENTER;
    for (Stream* stream : device().streams) {
        while (((Event*)event)->is_recorded && !((Event*)event)->has_passed && !stream->work.empty()) {
            auto work = std::move(stream->work.front());
            stream->work.pop_front();
            work();
        }
    }
    return SUCCESS;
}

API cuEventElapsedTime(float* milliseconds, void* from, void* to) {
    ENTER;
    if (!((Event*)from)->has_passed || !((Event*)to)->has_passed) return INVALID_HANDLE;
    *milliseconds = std::chrono::duration<float, std::milli>(((Event*)to)->when - ((Event*)from)->when).count();
    return SUCCESS;
}

// A "cubin" is a shared library, whose section headers come last.
API cuModuleLoadData(void** module, const void* image) {
    ENTER;
    auto header = (const Elf64_Ehdr*)image;
    if (memcmp(header->e_ident, ELFMAG, SELFMAG) != 0 || header->e_machine != EM_X86_64) return INVALID_IMAGE;
    size_t bytes = header->e_shoff + (size_t)header->e_shnum * header->e_shentsize;
    int file = memfd_create("kernels", MFD_CLOEXEC);
    for (size_t written = 0; written < bytes;) {
        ssize_t n = write(file, (const char*)image + written, bytes - written);
        if (n <= 0) return INVALID_IMAGE;
        written += n;
    }
    void* library = dlopen(("/proc/self/fd/" + std::to_string(file)).c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        fprintf(stderr, "emulated GPU: %s\n", dlerror());
        return INVALID_IMAGE;
    }
    auto compiler = (const int*)dlsym(library, "emulated_compiler");
    if (!compiler || *compiler > device().driver() / 1000) return INVALID_IMAGE;
    *module = new Module{library};
    return SUCCESS;
}

API cuModuleGetFunction(void** function, void* module, const char* name) {
    ENTER;
    auto kernel = (const emulated::Kernel*)dlsym(((Module*)module)->library, ("emulated_kernel_" + std::string(name)).c_str());
    if (!kernel) return NOT_FOUND;
    *function = new Function{kernel, name, 48 << 10};
    return SUCCESS;
}

// A kernel's own shared memory is known when it has run: the limit is checked then.
API cuFuncGetAttribute(int* value, int attribute, void*) {
    ENTER;
    if (attribute != 1) return INVALID_VALUE;
    *value = 0;
    return SUCCESS;
}

API cuFuncSetAttribute(void* function, int attribute, int value) {
    ENTER;
    if (attribute != 8 || value > device().shared_bytes()) return INVALID_VALUE;
    ((Function*)function)->dynamic_limit = value;
    return SUCCESS;
}

API cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y, unsigned block_z,
                   unsigned shared_bytes, void* stream, void** arguments, void**) {
    ENTER;
    const Function& launched = *(Function*)function;
    size_t threads = (size_t)block_x * block_y * block_z;
    if (!grid_x || !grid_y || !grid_z || !threads || grid_x > 0x7fffffffu || grid_y > 65535 || grid_z > 65535 || threads > 1024) {
        return INVALID_VALUE;
    }
    if ((int)shared_bytes > launched.dynamic_limit) return INVALID_VALUE;
    if (threads > launched.kernel->max_threads) return LAUNCH_OUT_OF_RESOURCES;
    emulated::Launch launch = {launched.name.c_str(), launched.kernel->bind(arguments), {grid_x, grid_y, grid_z},
                               {block_x, block_y, block_z}, shared_bytes, (size_t)device().shared_bytes()};
    emulated::enqueue(stream, [launch = std::move(launch)] { emulated::run(launch); });
    return SUCCESS;
}

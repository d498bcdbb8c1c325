// Does the emulated GPU find what it is there to find? Each fault below ends the program that runs it, with its name; without the fault
// it ends well. `build.sh FOLDER` builds it beside the libraries.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

extern "C" {
int cuInit(unsigned);
int cuDevicePrimaryCtxRetain(void**, int);
int cuCtxSetCurrent(void*);
int cuStreamCreate(void**, unsigned);
int cuStreamSynchronize(void*);
int cuMemAlloc_v2(uint64_t*, size_t);
int cuMemFree_v2(uint64_t);
int cuMemHostAlloc(void**, size_t, unsigned);
int cuMemcpyHtoDAsync_v2(uint64_t, const void*, size_t, void*);
int cuMemcpyDtoHAsync_v2(void*, uint64_t, size_t, void*);
int cuModuleLoadData(void**, const void*);
int cuModuleGetFunction(void**, void*, const char*);
int cuLaunchKernel(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**);
int nvrtcCreateProgram(void**, const char*, const char*, int, const char* const*, const char* const*);
int nvrtcCompileProgram(void*, int, const char* const*);
int nvrtcGetProgramLogSize(void*, size_t*);
int nvrtcGetProgramLog(void*, char*);
int nvrtcGetCUBINSize(void*, size_t*);
int nvrtcGetCUBIN(void*, char*);
}

// 64 threads; `x` has 64 numbers, `y` so many that are not set.
const char* KERNELS = R"(
typedef unsigned short bf16;
typedef unsigned int u32;
#define INDEX u32 i = threadIdx.x

extern "C" __global__ void sum_of_all(const float* x, float* y, u32 wrong) {
    __shared__ float part[2];
    INDEX;
    float sum = x[i];
    for (int lane = 16; lane > 0; lane /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lane);
    if (i % 32 == 0) part[i / 32] = sum;
    if (!wrong) __syncthreads();
    y[i] = part[0] + part[1];
}
extern "C" __global__ void beyond(const float* x, float* y, u32 wrong) { y[threadIdx.x + (wrong ? 64 : 0)] = x[threadIdx.x]; }
extern "C" __global__ void before(const float* x, float* y, u32 wrong) { y[threadIdx.x] = x[(int)threadIdx.x - (wrong ? 64 : 0)]; }
extern "C" __global__ void misaligned(const float* x, float* y, u32 wrong) {
    if (threadIdx.x < 8) *(float4*)(y + 4 * threadIdx.x) = *(const float4*)(x + 4 * threadIdx.x + wrong);
    if (threadIdx.x >= 32) y[threadIdx.x] = 1.0f;
}
extern "C" __global__ void beyond_shared(const float* x, float* y, u32 wrong) {
    __shared__ float part[64];
    float* at = part;
    at[threadIdx.x + wrong] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = part[threadIdx.x];
}
extern "C" __global__ void beyond_dynamic(const float* x, float* y, u32 wrong) {
    extern __shared__ float part[];
    part[threadIdx.x + (wrong ? 4 : 0)] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = x[threadIdx.x];
}
extern "C" __global__ void divided_barrier(const float* x, float* y, u32 wrong) {
    y[threadIdx.x] = x[threadIdx.x];
    if (wrong && threadIdx.x % 2) __syncthreads();
    else __syncwarp();
}
extern "C" __global__ void divided_lanes(const float* x, float* y, u32 wrong) {
    float z = x[threadIdx.x];
    if (wrong && threadIdx.x % 2) z = __shfl_down_sync(0xffffffffu, z, 1) + __ballot_sync(0xffffffffu, 1);
    else z = __ballot_sync(0xffffffffu, 1);
    y[threadIdx.x] = z;
}
extern "C" __global__ void not_waited_for(const float* x, float* y, u32 wrong) {
    __shared__ __align__(16) bf16 part[64 * 8];
    copy_async(part + 8 * threadIdx.x, (const bf16*)x + 8 * (threadIdx.x % 16), true);
    commit_copies();
    if (!wrong) wait_for_copies();
    __syncthreads();
    y[threadIdx.x] = ((float*)part)[threadIdx.x];
}
extern "C" __global__ void too_much_shared(const float* x, float* y, u32 wrong) {
    __shared__ float much[9000];
    much[threadIdx.x] = x[threadIdx.x];
    if (wrong) {
        __shared__ float more[9000];
        more[threadIdx.x] = 0.0f;
    }
    y[threadIdx.x] = much[threadIdx.x];
}
extern "C" __global__ void not_set(const float* x, float* y, u32 wrong) { y[threadIdx.x] = wrong ? y[threadIdx.x] : x[threadIdx.x]; }
)";

// What a fault leads to: a message before the program ends, or numbers that are none.
const char* NO_NUMBERS = "not a number";
struct Fault {
    const char* kernel;
    const char* message;
};
const Fault FAULTS[] = {
    {"sum_of_all", NO_NUMBERS},
    {"beyond", "outside of memory"},
    {"before", NO_NUMBERS},
    {"misaligned", "misaligned access"},
    {"beyond_shared", "behind a shared variable"},
    {"beyond_dynamic", "outside of memory"},
    {"divided_barrier", "wait for each other"},
    {"divided_lanes", "different instructions"},
    {"not_waited_for", NO_NUMBERS},
    {"too_much_shared", "more than 48 KiB"},
    {"not_set", NO_NUMBERS},
};

#define CHECK(call)                                      \
    if (int error = (call)) {                            \
        fprintf(stderr, "%s: error %d\n", #call, error); \
        _exit(3);                                        \
    }

// Runs a kernel and says so on stderr if its result has no numbers.
void run(const std::vector<char>& code, const char* name, unsigned wrong) {
    void *context, *stream, *module, *function, *host;
    uint64_t x, y;
    CHECK(cuInit(0));
    CHECK(cuDevicePrimaryCtxRetain(&context, 0));
    CHECK(cuCtxSetCurrent(context));
    CHECK(cuStreamCreate(&stream, 0));
    CHECK(cuMemAlloc_v2(&x, 256));
    CHECK(cuMemAlloc_v2(&y, 256));
    CHECK(cuMemHostAlloc(&host, 256, 0));
    float* numbers = (float*)host;
    for (int i = 0; i < 64; ++i) numbers[i] = 1.0f;
    CHECK(cuMemcpyHtoDAsync_v2(x, host, 256, stream));
    CHECK(cuModuleLoadData(&module, code.data()));
    CHECK(cuModuleGetFunction(&function, module, name));
    void* arguments[] = {&x, &y, &wrong};
    CHECK(cuLaunchKernel(function, 1, 1, 1, 64, 1, 1, strcmp(name, "beyond_dynamic") == 0 ? 256 : 0, stream, arguments, nullptr));
    CHECK(cuMemcpyDtoHAsync_v2(host, y, 256, stream));
    CHECK(cuStreamSynchronize(stream));
    for (int i = 0; i < 64; ++i) {
        if (numbers[i] != numbers[i]) {
            fprintf(stderr, "%s\n", NO_NUMBERS);
            _exit(1);
        }
    }
    CHECK(cuMemFree_v2(y));
    _exit(0);
}

int main() {
    void* program;
    CHECK(nvrtcCreateProgram(&program, KERNELS, "faults.cu", 0, nullptr, nullptr));
    bool is_made = nvrtcCompileProgram(program, 0, nullptr) == 0;
    size_t size;
    nvrtcGetProgramLogSize(program, &size);
    std::string log(size, 0);
    nvrtcGetProgramLog(program, log.data());
    if (!is_made) {
        fprintf(stderr, "%s\n", log.c_str());
        return 1;
    }
    CHECK(nvrtcGetCUBINSize(program, &size));
    std::vector<char> code(size);
    CHECK(nvrtcGetCUBIN(program, code.data()));
    int failures = 0;
    for (const Fault& fault : FAULTS) {
        for (unsigned wrong = 0; wrong < 2; ++wrong) {
            int ends[2];
            CHECK(pipe(ends));
            pid_t child = fork();
            if (child == 0) {
                dup2(ends[1], 2);
                run(code, fault.kernel, wrong);
            }
            close(ends[1]);
            std::string said;
            char text[512];
            for (ssize_t n; (n = read(ends[0], text, sizeof text)) > 0;) said.append(text, n);
            close(ends[0]);
            int status;
            waitpid(child, &status, 0);
            bool is_found = status != 0 && said.find(fault.message) != std::string::npos;
            bool is_right = wrong ? is_found : status == 0;
            if (!is_right) printf("%s, %s the fault: status %d, said: %s\n", fault.kernel, wrong ? "with" : "without", status, said.c_str());
            failures += !is_right;
        }
    }
    printf("%zu faults, %d not as expected\n", sizeof FAULTS / sizeof *FAULTS, failures);
    return failures != 0;
}

// libnvrtc.so.13 (.12): kernels are compiled by g++ behind kernel.h, into a shared library. Options of the real one are not for it.
// CXX says which compiler.

#include <dlfcn.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <regex>
#include <sstream>
#include <string>

#define API extern "C" __attribute__((visibility("default"))) int

namespace {

enum Code { SUCCESS = 0, INVALID_PROGRAM = 4, COMPILATION = 6, INTERNAL_ERROR = 11 };

struct Program {
    std::string text, name, log, binary;
};

// This library's file. kernel.h and the driver lie beside it.
std::filesystem::path own_file() {
    Dl_info about;
    dladdr((void*)own_file, &about);
    return std::filesystem::canonical(about.dli_fname);
}

// Replaces what `pattern` finds by what `by` makes of it.
template <typename By>
std::string replaced(const std::string& text, const std::regex& pattern, By by) {
    std::string result;
    auto from = text.cbegin();
    for (std::sregex_iterator match(text.begin(), text.end(), pattern), end; match != end; ++match) {
        result.append(from, (*match)[0].first);
        result += by(*match);
        from = (*match)[0].second;
    }
    return result.append(from, text.cend());
}

// `__shared__ T a, b[n];` becomes references into the running block's shared memory, `extern __shared__ T c[];` a pointer.
std::string with_shared_memory(const std::string& text) {
    static const std::regex declaration(R"((extern\s+)?__shared__\s+(?:__align__\(([^()]*)\)\s+)?((?:unsigned\s+)?\w+(?:<[^<>;]*>)?)\s+([^;]*);)");
    static const std::regex variable(R"((\w+)\s*((?:\[[^\]]*\])*))");
    return replaced(text, declaration, [](const std::smatch& found) {
        bool is_dynamic = found[1].matched;
        std::string alignment = found[2], type = found[3], variables = found[4];
        return replaced(variables + ",", std::regex(R"(([^,]+),)"), [&](const std::smatch& one) {
            std::smatch parts;
            std::string text = one[1];
            if (!std::regex_search(text, parts, variable)) return text;
            std::string name = parts[1], dimensions = parts[2];
            if (is_dynamic) return type + "* " + name + " = (" + type + "*)emulated::dynamic_shared_memory();";
            std::string own = "emulated_type_of_" + name;
            std::string least = alignment.empty() ? "alignof(" + own + ")" : alignment;
            return "typedef " + type + " " + own + dimensions + "; " + own + "& " + name + " = emulated_shared<" + own + ">([] {}, " + least + ");";
        });
    });
}

// What hands a source's kernels to the driver.
std::string kernels_of(const std::string& text) {
    static const std::regex kernel(R"(__global__\s+void\s+(?:__launch_bounds__\(([^(),]*)[^()]*\)\s+)?(\w+)\s*\()");
    std::string result;
    for (std::sregex_iterator match(text.begin(), text.end(), kernel), end; match != end; ++match) {
        std::string bound = (*match)[1].matched ? (*match)[1].str() : "1024";
        result += "EMULATED_KERNEL(" + (*match)[2].str() + ", " + bound + ")\n";
    }
    return result;
}

std::string contents(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
}

}  // namespace

API nvrtcCreateProgram(void** program, const char* text, const char* name, int, const char* const*, const char* const*) {
    *program = new Program{text, name, "", ""};
    return SUCCESS;
}

API nvrtcCompileProgram(void* handle, int, const char* const*) {
    Program& program = *(Program*)handle;
    char place[] = "/tmp/emulated-XXXXXX";
    if (!mkdtemp(place)) return INTERNAL_ERROR;
    // libnvrtc.so.12 is of CUDA 12.
    std::string at = place, own = own_file().parent_path(), compiler_version = own_file().extension().string().substr(1);
    std::ofstream(at + "/kernels.cpp") << "#include \"" << own << "/kernel.h\"\n#line 1 \"" << program.name << "\"\n"
                                       << with_shared_memory(program.text) << "\n"
                                       << kernels_of(program.text) << "extern \"C\" const int emulated_compiler = " << compiler_version << ";\n";
    const char* compiler = getenv("CXX");
    std::string command = std::string(compiler ? compiler : "g++") +
                          " -std=gnu++17 -O2 -march=native -fno-math-errno -fno-trapping-math -fPIC -shared -Wno-unknown-pragmas"
                          " -fsanitize=alignment,bounds -fsanitize-undefined-trap-on-error " +
                          at + "/kernels.cpp -o " + at + "/kernels.so -L" + own + " -l:libcuda.so.1 >" + at + "/log 2>&1";
    bool is_made = system(command.c_str()) == 0;
    program.log = contents(at + "/log");
    program.binary = contents(at + "/kernels.so");
    std::filesystem::remove_all(at);
    return is_made ? SUCCESS : COMPILATION;
}

API nvrtcGetProgramLogSize(void* program, size_t* size) {
    *size = ((Program*)program)->log.size() + 1;
    return SUCCESS;
}

API nvrtcGetProgramLog(void* program, char* log) {
    strcpy(log, ((Program*)program)->log.c_str());
    return SUCCESS;
}

API nvrtcGetCUBINSize(void* program, size_t* size) {
    *size = ((Program*)program)->binary.size();
    return *size ? SUCCESS : INVALID_PROGRAM;
}

API nvrtcGetCUBIN(void* program, char* code) {
    const std::string& binary = ((Program*)program)->binary;
    memcpy(code, binary.data(), binary.size());
    return SUCCESS;
}

API nvrtcDestroyProgram(void** program) {
    delete (Program*)*program;
    *program = nullptr;
    return SUCCESS;
}

// A library that offers one plugin to whoever asks for its creators, as those for TensorRT 10 do. What stands here of
// nvinfer1::IPluginCreatorV3One is its layout in memory, so that no headers of TensorRT are needed to compile it.
#include <cstdint>


struct InterfaceInfo {
    const char* kind;
    int32_t major;
    int32_t minor;
};

struct FieldCollection {
    int32_t count;
    const void* fields;
};

class Creator {
public:
    virtual int32_t getAPILanguage() const noexcept { return 0; }  // C++
    virtual InterfaceInfo getInterfaceInfo() const noexcept { return {"PLUGIN CREATOR_V3ONE", 1, 0}; }
    virtual ~Creator() noexcept = default;
    virtual void* createPlugin(const char*, const FieldCollection*, int32_t) noexcept { return nullptr; }
    virtual const FieldCollection* getFieldNames() noexcept { return &none; }
    virtual const char* getPluginName() const noexcept { return "PinstreamTest"; }
    virtual const char* getPluginVersion() const noexcept { return "1"; }
    virtual const char* getPluginNamespace() const noexcept { return ""; }

private:
    FieldCollection none{0, nullptr};
};

extern "C" Creator* const* getCreators(int32_t& count) {
    static Creator creator;
    static Creator* creators[] = {&creator};
    count = 1;
    return creators;
}

extern "C" void setLoggerFinder(void*) {}

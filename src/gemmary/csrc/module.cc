// The extension module gemmary._core: one file for each thing that Python sees of C++.
#include <nanobind/nanobind.h>

void bind_gguf(nanobind::module_& module);
void bind_native(nanobind::module_& module);
void bind_tokenizer(nanobind::module_& module);
void bind_probe(nanobind::module_& module);

NB_MODULE(_core, module) {
  bind_gguf(module);
  bind_native(module);
  bind_tokenizer(module);
  bind_probe(module);
}

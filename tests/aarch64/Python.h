// What csrc/registration.cpp says to Python, which is not there.

#pragma once

struct PyObject;
struct PyModuleDef {
  int head;
  const char *name, *doc;
  long size;
  const void *methods, *slots, *traverse, *clear, *free;
};
#define PyModuleDef_HEAD_INIT 0

inline PyObject* PyModule_Create(PyModuleDef*) {
  return nullptr;
}

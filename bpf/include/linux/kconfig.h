#define CONFIG_BPF_SYSCALL 1
#include <linux/types.h>

/* residuald_emulated only: SIGUSR2 breaks the device, as a sticky error in the middle of a step
 * would. */
#include "tests/emulation/emu_control.h"

#include <pthread.h>
#include <signal.h>

static sigset_t usr2;

static void *wait_for_signal(void *arg)
{
    int sig;
    (void)arg;
    if (sigwait(&usr2, &sig) == 0)
        emu_break_device();
    return NULL;
}

/* Before main, so that every thread inherits the mask. */
__attribute__((constructor)) static void listen_for_signal(void)
{
    pthread_t thread;
    sigemptyset(&usr2);
    sigaddset(&usr2, SIGUSR2);
    sigprocmask(SIG_BLOCK, &usr2, NULL);
    if (pthread_create(&thread, NULL, wait_for_signal, NULL) == 0)
        pthread_detach(thread);
}

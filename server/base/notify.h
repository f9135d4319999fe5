/* What a service manager is told (sd_notify): a datagram to NOTIFY_SOCKET, a path or an abstract
 * name ("@name"). Without that variable nothing happens, and a manager that is away is no error:
 * these calls never fail and never wait. Thread: main. */
#ifndef RS_BASE_NOTIFY_H
#define RS_BASE_NOTIFY_H

/* Started, or done with a reload. status: one line for `systemctl status`. */
void notify_ready(const char *status);
/* A reload has begun (Type=notify-reload wants the time too); notify_ready ends it. */
void notify_reloading(void);
void notify_stopping(const char *status);

#endif

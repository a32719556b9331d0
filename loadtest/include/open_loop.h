/* The open loop: requests leave when they are due, whatever became of those before them. One thread, a few connections,
   and no waiting but in ppoll; the last microseconds before a request is due are spent polling, so that it leaves on
   time. */
#ifndef RECSERVE_OPEN_LOOP_H
#define RECSERVE_OPEN_LOOP_H

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "h2.h"

#define LOOP_SPIN_NS 60000            /* a sleeping thread wakes up later than this only where others hold the core */
#define LOOP_SLICE_NS 100000          /* the shortest that the scheduler takes */
#define LOOP_RETRY_NS 100000000LL     /* between attempts to connect again */
#define LOOP_LOST_NS 3000000000LL     /* without any connection for so long, the target is given up */
#define LOOP_LAST_NS 10000000000LL    /* how long answers without a deadline are waited for at the end */
#define LOOP_LONGEST_NS 50000000LL    /* of one wait: a stop is noticed within it */
#define LOOP_HELD_NS 1000000LL        /* of a wait for the target's limits, unless something comes in before */

enum { LOOP_DONE, LOOP_STOPPED, LOOP_GONE };  /* how it ended: all sent, asked to stop, the target was given up */

typedef struct {
    h2_connection h2;
    int fd;                           /* -1: none */
    int connecting;
    int64_t retry_ns;
} loop_peer;

typedef struct {
    loop_peer *peers;
    struct pollfd *polled;
    int32_t connections, turn;
    struct sockaddr_storage address;
    socklen_t address_size;
    h2_work *work;
    int64_t next;                     /* request */
    int64_t outstanding;              /* closed loop: requests under way; 0: open loop */
    int64_t end_ns;                   /* closed loop: nothing leaves after it */
    int64_t expiry_ns;                /* no call expires before */
    int64_t alive_ns;                 /* when a connection was there last */
    int64_t held_ns;                  /* the target's limits held back what was due before */
    const volatile int32_t *stop;
    const char *error;                /* of the connection that failed last */
} loop_state;

static int64_t loop_now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000LL + time.tv_nsec;
}

static int64_t loop_open_calls(const loop_state *l) {
    int64_t open = 0;
    for (int i = 0; i < l->connections; i++) open += l->peers[i].h2.open;
    return open;
}

/* -------------------------------------------------------------------------------------------------- connections */

static int loop_up(const loop_peer *p) { return p->fd >= 0 && !p->connecting; }

static void loop_drop(loop_state *l, loop_peer *p, int outcome, const char *text, int64_t now) {
    h2_close(&p->h2, outcome, text, now);
    close(p->fd);
    p->fd = -1;
    p->retry_ns = now + LOOP_RETRY_NS;
    l->error = text;
}

static void loop_connect(loop_state *l, loop_peer *p, int64_t now) {
    int one = 1;
    p->retry_ns = now + LOOP_RETRY_NS;
    p->fd = socket(l->address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (p->fd < 0) return;
    setsockopt(p->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    h2_open(&p->h2, l->work);
    p->connecting = connect(p->fd, (struct sockaddr *)&l->address, l->address_size) < 0;
    if (p->connecting && errno != EINPROGRESS) loop_drop(l, p, LOST, "cannot connect to the target", now);
}

static void loop_connected(loop_state *l, loop_peer *p, int64_t now) {
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(p->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error)
        loop_drop(l, p, LOST, "cannot connect to the target", now);
    else
        p->connecting = 0;
}

/* Connects again where a connection is gone, or where the target wants it to end. */
static void loop_mend(loop_state *l, int64_t now) {
    for (int i = 0; i < l->connections; i++) {
        loop_peer *p = &l->peers[i];
        if (loop_up(p)) l->alive_ns = now;
        if (p->fd >= 0 && p->h2.draining && !p->h2.open) {
            loop_drop(l, p, LOST, "the target ended the connection", now);
            p->retry_ns = now;
        }
        if (p->fd < 0 && now >= p->retry_ns) loop_connect(l, p, now);
    }
}

static void loop_write(loop_state *l, loop_peer *p, int64_t now) {
    h2_connection *c = &p->h2;
    while (loop_up(p) && c->out_start < c->out_size) {
        ssize_t size = send(p->fd, c->out + c->out_start, c->out_size - c->out_start, MSG_NOSIGNAL);
        if (size < 0 && errno == EINTR) continue;
        if (size < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
        if (size < 0)
            loop_drop(l, p, LOST, "the connection was lost", now);
        else
            c->out_start += (size_t)size;
        if (c->out_start == c->out_size) h2_pump(c);  /* bodies that found no room in `out` have it now */
    }
}

static void loop_read(loop_state *l, loop_peer *p) {
    h2_connection *c = &p->h2;
    for (;;) {
        size_t room = H2_IN - c->in_size;
        ssize_t size = recv(p->fd, c->in + c->in_size, room, 0);
        int64_t now = loop_now();
        if (size < 0 && errno == EINTR) continue;
        if (size < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
        if (size <= 0) {
            loop_drop(l, p, LOST, "the connection was lost", now);
            return;
        }
        c->in_size += (size_t)size;
        h2_feed(c, now);
        if (c->error) {
            loop_drop(l, p, MALFORMED, c->error, now);
            return;
        }
        if ((size_t)size < room) return;
    }
}

/* ------------------------------------------------------------------------------------------------------ requests */

static const h2_kind *loop_kind(const h2_work *work, int64_t request) {
    return &work->kinds[work->message_kinds[work->message[request]]];
}

static void loop_fail(h2_work *work, int64_t request, int outcome, const char *text, int64_t now) {
    work->done[request] = now;
    work->outcome[request] = (int16_t)outcome;
    h2_keep_text(work, outcome, text);
}

/* Gives a request to a connection that takes it. */
static int loop_begin(loop_state *l, int64_t request, int64_t now) {
    for (int i = 0; i < l->connections; i++) {
        loop_peer *p = &l->peers[l->turn];
        l->turn = (l->turn + 1) % l->connections;
        if (loop_up(p) && h2_begin(&p->h2, request, now)) return 1;
    }
    return 0;
}

static int loop_any_up(const loop_state *l) {
    for (int i = 0; i < l->connections; i++)
        if (loop_up(&l->peers[i])) return 1;
    return 0;
}

/* Deals with the next request, which is due; 0: the target's limits do not let it leave yet. */
static int loop_send(loop_state *l, int64_t now) {
    h2_work *work = l->work;
    int64_t request = l->next, timeout = loop_kind(work, request)->timeout_ns, expires = work->due[request] + timeout;
    if (work->due[request] < l->held_ns) work->flags[request] |= BLOCKED;  /* behind one that was held back */
    if (timeout && now >= expires) {
        loop_fail(work, request, DEADLINE_EXCEEDED, "the deadline passed before the request could leave", expires);
    } else if (!loop_any_up(l)) {
        loop_fail(work, request, LOST, "there is no connection to the target", now);
    } else if (!loop_begin(l, request, now)) {
        work->flags[request] |= BLOCKED;
        l->held_ns = now + LOOP_HELD_NS;
        return 0;
    } else if (timeout && expires < l->expiry_ns) {
        l->expiry_ns = expires;
    }
    l->next++;
    return 1;
}

/* Sends what is due, and notes when it had been handed to the system. */
static void loop_send_due(loop_state *l, int64_t now) {
    h2_work *work = l->work;
    int64_t first = l->next, open = l->outstanding ? loop_open_calls(l) : 0;
    if (now < l->held_ns) l->held_ns = now;  /* the wait is over: what comes due from here on is held by nobody yet */
    while (l->next < work->requests) {
        if (l->outstanding) {
            if (now >= l->end_ns || open + l->next - first >= l->outstanding) break;
            work->due[l->next] = now;
        } else if (work->due[l->next] > now) {
            break;
        }
        if (!loop_send(l, now)) break;
    }
    for (int i = 0; i < l->connections; i++) loop_write(l, &l->peers[i], now);
    if (l->next == first) return;
    now = loop_now();
    for (int64_t i = first; i < l->next; i++) work->sent[i] = now;
}

/* Ends the calls whose deadline has passed. */
static void loop_expire(loop_state *l, int64_t now) {
    if (now < l->expiry_ns) return;
    l->expiry_ns = INT64_MAX;
    for (int i = 0; i < l->connections; i++) {
        h2_connection *c = &l->peers[i].h2;
        for (int at = 0; at < H2_CALLS && c->open; at++) {
            h2_call *call = &c->calls[at];
            if (!call->stream || !call->expires_ns) continue;
            if (call->expires_ns <= now)
                h2_abandon(c, call, DEADLINE_EXCEEDED, "the deadline passed without an answer", now);
            else if (call->expires_ns < l->expiry_ns)
                l->expiry_ns = call->expires_ns;
        }
    }
}

/* ---------------------------------------------------------------------------------------------------------- loop */

/* When there is something to do next, besides what comes in. */
static int64_t loop_next(const loop_state *l, int64_t now) {
    int64_t next = now + LOOP_LONGEST_NS;
    int open = !l->outstanding && !*l->stop && l->next < l->work->requests;
    if (open && l->work->due[l->next] < next) next = l->work->due[l->next];
    if (l->expiry_ns < next) next = l->expiry_ns;
    return next;
}

static void loop_wait(loop_state *l, int64_t now) {
    int64_t wait = loop_next(l, now) - now;
    int blocked = wait <= 0;  /* what is due waits for the target, so nothing is late by waiting for it */
    wait = blocked ? LOOP_HELD_NS : wait > LOOP_SPIN_NS ? wait - LOOP_SPIN_NS : 0;
    struct timespec time = {(time_t)(wait / 1000000000), (long)(wait % 1000000000)};
    for (int i = 0; i < l->connections; i++) {
        const loop_peer *p = &l->peers[i];
        int writes = p->connecting || p->h2.out_start < p->h2.out_size;
        l->polled[i] = (struct pollfd){p->fd, (short)(POLLIN | (writes ? POLLOUT : 0)), 0};
    }
    if (ppoll(l->polled, (nfds_t)l->connections, &time, NULL) <= 0) return;
    now = loop_now();
    for (int i = 0; i < l->connections; i++) {
        loop_peer *p = &l->peers[i];
        if (p->fd < 0 || p->fd != l->polled[i].fd || !l->polled[i].revents) continue;
        if (p->connecting) loop_connected(l, p, now);
        if (loop_up(p) && l->polled[i].revents & (POLLIN | POLLHUP | POLLERR)) loop_read(l, p);
    }
}

static int loop_sends(const loop_state *l, int64_t now) {
    return !*l->stop && l->next < l->work->requests && (!l->outstanding || now < l->end_ns);
}

static int64_t loop_longest_timeout(const h2_work *work, int64_t kinds) {
    int64_t longest = 0;
    for (int64_t i = 0; i < kinds; i++) {
        if (!work->kinds[i].timeout_ns) return LOOP_LAST_NS;
        if (work->kinds[i].timeout_ns > longest) longest = work->kinds[i].timeout_ns;
    }
    return longest;
}

/* sched_setattr(2), which the C library may lack; later fields are not sent. */
typedef struct {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
} loop_schedule;

/* Asks for short turns on the core. Since Linux 6.12 who does so may interrupt others that are in their longer ones when
   it wakes up; it gets no more of the core than before, so that takes no privileges. Other kernels ignore it. */
static void loop_take_short_turns(void) {
    if (sched_getscheduler(0) != SCHED_OTHER) return;
    loop_schedule schedule = {sizeof schedule, SCHED_OTHER, 0, getpriority(PRIO_PROCESS, 0), 0, LOOP_SLICE_NS, 0, 0};
    syscall(SYS_sched_setattr, 0, &schedule, 0);
}

/* Runs until every request has its outcome. */
static int loop_run(loop_state *l, int64_t kinds) {
    int64_t now = loop_now(), last = 0, patience = loop_longest_timeout(l->work, kinds) + LOOP_LONGEST_NS;
    int end = LOOP_DONE;
    prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL);
    loop_take_short_turns();
    l->alive_ns = now;
    l->held_ns = 0;
    l->expiry_ns = INT64_MAX;
    for (;;) {
        now = loop_now();
        loop_mend(l, now);
        if (now - l->alive_ns > LOOP_LOST_NS) end = LOOP_GONE;
        if (loop_sends(l, now) && end != LOOP_GONE)
            loop_send_due(l, last = now);
        else if (end == LOOP_GONE || !loop_open_calls(l) || now > last + patience)
            break;
        loop_expire(l, now);
        for (int i = 0; i < l->connections; i++) {
            loop_peer *p = &l->peers[i];
            if (p->fd >= 0 && p->h2.error) loop_drop(l, p, MALFORMED, p->h2.error, now);
            loop_write(l, p, now);
        }
        loop_wait(l, now);
    }
    for (int i = 0; i < l->connections; i++) {
        loop_peer *p = &l->peers[i];
        if (p->fd < 0) continue;
        h2_close(&p->h2, LOST, "no answer had come when the run ended", now);
        close(p->fd);
    }
    return *l->stop && l->next < l->work->requests ? LOOP_STOPPED : end;
}

#endif

"Which worker takes a new connection: one that has the fewest, or all of some client's requests would wait for one core"
import asyncio
import ctypes
import resource
import socket
import struct
from collections.abc import Callable

from fashion_serve.board import Board

TURN = .002 # seconds in which another worker may take it
TURNS = 5 # then this one does: the other may be stuck
SLACK = 1.25 # times as many connections as another one are no reason to leave one to it
MOST = 1500 # connections of a worker, as far as it may open so many files; for more, those make room that wait for their clients
OTHER_FILES = 100 # that a worker may need to open: models, metrics, pictures on their way
BUSY = 2**31 # connections of a worker that wants none
SO_ATTACH_FILTER = 26 # of Linux; Python does not name it
NO_SYN = ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xffffffff)) # BPF: load TCP's flags; is SYN set? then drop, else keep


def knock_unheard(sock: socket.socket):
    "Whoever would connect gets no answer, and finds nobody there when he tries again a second later: no connection is made that nobody will take"
    program = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *line) for line in NO_SYN))
    try: sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack('HP', len(NO_SYN), ctypes.addressof(program)))
    except OSError: sock.listen(0) # elsewhere than on Linux: the kernel makes no more than one ahead


def most_connections() -> int:
    "As many as a worker can take on; raises the limit of open files as far as it may"
    _, allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, allowed))
    return MOST if allowed == resource.RLIM_INFINITY else max(1, min(MOST, allowed - OTHER_FILES))


class Acceptor:
    "Takes connections from a socket that all workers listen on"
    def __init__(self, sock: socket.socket, protocol: Callable[[], asyncio.Protocol], board: Board, connections: Callable[[], int], make_room: Callable[[], bool]):
        self.sock, self.protocol, self.board, self.connections, self.make_room = sock, protocol, board, connections, make_room
        self.most = most_connections()
        self.loop, self.left, self.made = asyncio.get_running_loop(), 0, set()
        self.sock.setblocking(False)
        self._watch()

    def close(self):
        "Take no more"
        self.loop.remove_reader(self.sock)
        self.sock = None

    async def wait_closed(self):
        "For uvicorn, which awaits its servers"

    async def take_waiting(self):
        "Take all that have been made and not looked at yet"
        while self._take(): pass
        await asyncio.gather(*self.made)

    def _watch(self):
        if self.sock: self.loop.add_reader(self.sock, self._ready)

    def _ready(self):
        mine = self.connections()
        if self.left < TURNS and mine > 1 + SLACK*self.board.least_busy():
            self.left += 1
            return self._pause()
        self.left = 0
        for more in range(1 + mine // 4 if mine < BUSY else 1): # one by one while they are few; a flood must not wait
            if self.most <= mine + more < BUSY and not self.make_room(): return self._pause()
            if not self._take(): return

    def _pause(self):
        self.loop.remove_reader(self.sock)
        self.loop.call_later(TURN, self._watch)

    def _take(self) -> bool: # False if there is none
        try: connection, _ = self.sock.accept()
        except BlockingIOError: return False
        except ConnectionAbortedError: return True # a client that is gone again
        except OSError: # no more files can be opened: perhaps soon
            self._pause()
            return False
        self.made.add(task := self.loop.create_task(self.loop.connect_accepted_socket(self.protocol, connection)))
        task.add_done_callback(self.made.discard)
        return True

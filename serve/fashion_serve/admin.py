"Models exchanged and tried while the service runs; for the one who runs it"
import hmac
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request

from fashion_serve import schemas as s
from fashion_serve.errors import Problem
from fashion_serve.keys import bearer, key_digest
from fashion_serve.openapi import problems
from fashion_serve.routes import EngineDep, describe

BROWSER_OR_PROXY = {'x-forwarded-for', 'forwarded', 'origin', 'sec-fetch-site'} # who sends these is not a program on this machine


async def allowed(request: Request):
    "The administrator's key; without one set, somebody on this very machine. Raises `Problem`"
    wanted, given = request.app.state.engine.settings.admin_key_sha256, bearer(request)
    if wanted:
        if not hmac.compare_digest(key_digest(given), wanted): raise Problem('not_allowed', 'this needs the key of the administrator: Authorization: Bearer ...')
    elif request.client is None or request.client.host not in ('127.0.0.1', '::1') or not BROWSER_OR_PROXY.isdisjoint(request.headers):
        raise Problem('not_allowed', 'this is for programs on the same machine, as long as FASHION_ADMIN_KEY_SHA256 is not set')


Share = Annotated[float, Query(gt=0, le=1, description='share of the requests')]
admin = APIRouter(prefix='/v1/models/{name}', tags=['models'], dependencies=[Depends(allowed)], responses=problems('not_allowed', 'not_ready', 'unknown_model'))


async def _changed(name: str, engine: EngineDep, change: Callable[[str], Awaitable]) -> s.ModelOut:
    engine.check_ready()
    await change(name)
    return describe(engine.registry.get(name), engine.registry.default)


@admin.post('/reload', summary='Read a model file again', responses=problems('bad_model'))
async def reload(name: str, engine: EngineDep) -> s.ModelOut:
    "Loaded beside the old one, verified, warmed up, exchanged in all workers without a pause; nothing changes if the file is bad."
    return await _changed(name, engine, engine.registry.reload)


@admin.post('/canary', summary='Let a candidate answer some requests', responses=problems('bad_model', 'invalid_parameter'))
async def canary(name: str, engine: EngineDep, share: Share = .1) -> s.TrialOut:
    "The candidate is the file NAME.next.onnx; it goes by itself when its answers fail or take too long."
    return await _trial(name, engine, share, shadow=False)


@admin.post('/shadow', summary='Ask a candidate beside the model', responses=problems('bad_model', 'invalid_parameter'))
async def shadow(name: str, engine: EngineDep, share: Share = 1.0) -> s.TrialOut:
    "Its answers are compared and thrown away; they delay nobody."
    return await _trial(name, engine, share, shadow=True)


async def _trial(name: str, engine: EngineDep, share: float, shadow: bool) -> s.TrialOut:
    engine.check_ready()
    version = await engine.registry.try_out(name, share, shadow)
    return s.TrialOut(model=name, version=version, share=share, shadow=shadow)


@admin.post('/promote', summary='Let the candidate replace the model', responses=problems('no_trial'))
async def promote(name: str, engine: EngineDep) -> s.ModelOut:
    "From now on it answers alone, until the service starts again: let its file take the place of NAME.onnx if it shall stay."
    return await _changed(name, engine, engine.registry.promote)


@admin.delete('/trial', summary='Stop trying the candidate', responses=problems('no_trial'))
async def end_trial(name: str, engine: EngineDep) -> s.ModelOut:
    "The model answers alone again."
    return await _changed(name, engine, engine.registry.end_trial)

"What /openapi.json promises is what is answered: requests made from it, right and wrong ones (schemathesis)"
import hypothesis
import pytest
import schemathesis
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from fashion_serve.main import create_app
from fashion_serve.settings import Settings

OPERATIONS = [(path, method) for path, methods in create_app(Settings()).openapi()['paths'].items() for method in methods]


@pytest.fixture(scope='module')
def described(started, models_dir):
    with started('--port', '0', '--models_dir', str(models_dir), FASHION_DEADLINE='30') as service:
        yield schemathesis.openapi.from_url(service.url + 'openapi.json')


def test_keys_and_parameters_are_described():
    doc = create_app(Settings()).openapi()
    assert {*doc['components']['securitySchemes']} == {'bearer', 'key'}
    for path, method in OPERATIONS:
        operation = doc['paths'][path][method]
        assert bool(operation.get('security')) == bool({'401', '403'} & {*operation['responses']}), (path, method)
        assert 'version' not in [p['name'] for p in operation.get('parameters', ())]


@pytest.mark.parametrize('mode', [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=['right', 'wrong'])
@pytest.mark.parametrize('path, method', OPERATIONS)
def test_every_answer_is_one_that_is_described(described, path, method, mode, turns):
    @hypothesis.given(described[path][method].as_strategy(generation_mode=mode))
    @hypothesis.settings(max_examples=turns(15, 500), deadline=None, derandomize=True, database=None, suppress_health_check=list(hypothesis.HealthCheck))
    def ask(case): case.call_and_validate(timeout=30, excluded_checks=[positive_data_acceptance]) # no schema says what a picture is
    try: ask()
    except hypothesis.errors.Unsatisfiable: assert mode is GenerationMode.NEGATIVE # nothing can be wrong with a request without parameters

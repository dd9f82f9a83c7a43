"What /openapi.json promises is what is answered: requests made from it, right and wrong ones (schemathesis)"
from collections.abc import Iterator

import hypothesis
import jsonschema
import pytest
import schemathesis
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from fashion_serve.main import create_app
from fashion_serve.settings import Settings

DOC = create_app(Settings()).openapi()
OPERATIONS = [(path, method) for path, methods in DOC['paths'].items() for method in methods]


@pytest.fixture(scope='module')
def described(started, models_dir):
    with started('--port', '0', '--models_dir', str(models_dir), FASHION_DEADLINE='30') as service:
        yield schemathesis.openapi.from_url(service.url + 'openapi.json')


def test_keys_and_parameters_are_described():
    assert {*DOC['components']['securitySchemes']} == {'bearer', 'key'}
    for path, method in OPERATIONS:
        operation = DOC['paths'][path][method]
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


# ---- examples
def json_contents(of: dict) -> Iterator[dict]:
    "What JSON or lines of it a body or an answer may be"
    yield from (content for kind, content in of.get('content', {}).items() if kind.endswith('json'))


def resolved(schema: dict) -> dict: return DOC['components']['schemas'][schema['$ref'].rpartition('/')[2]] if '$ref' in schema else schema


def examples(content: dict) -> list:
    "Beside the schema, in it, or of the items of a list"
    schema = resolved(content['schema'])
    beside = [content['example']] if 'example' in content else [example['value'] for example in content.get('examples', {}).values()]
    return beside or schema.get('examples') or [[example] for example in resolved(schema.get('items', {})).get('examples', ())]


def check(value, schema: dict): jsonschema.Draft202012Validator({**schema, 'components': DOC['components']}).validate(value)


@pytest.mark.parametrize('path, method', OPERATIONS)
def test_what_is_json_has_a_shape_and_examples_of_it(path, method):
    operation = DOC['paths'][path][method]
    for content in (content for of in (*operation['responses'].values(), operation.get('requestBody', {})) for content in json_contents(of)):
        schema = resolved(content['schema'])
        fields = schema if 'properties' in schema else resolved(schema['items'])
        assert fields['properties'] and examples(content), content
        for example in examples(content):
            check(example, schema)
            for row in example if isinstance(example, list) else [example]: assert {*row} <= {*fields['properties']} and {*fields['required']} <= {*row}


def test_what_is_wrong_with_an_example_is_found():
    for bad in ({'index': -1}, {'index': 0, 'predictions': [{'label': 'bag'}]}):
        with pytest.raises(jsonschema.ValidationError): check(bad, {'$ref': '#/components/schemas/BatchLine'})


def test_examples_of_requests_are_answered_as_described(client):
    tried = 0
    for path, method in OPERATIONS:
        operation = DOC['paths'][path][method]
        for kind, content in operation.get('requestBody', {}).get('content', {}).items():
            bodies = [dict(json=example) for example in examples(content)] if kind == 'application/json' else [
                dict(content=client.get('/' + example['externalValue']).content, headers={'Content-Type': kind.replace('*', 'png')}) for example in content.get('examples', {}).values()]
            for body in bodies:
                answer = client.request(method, path.format(name='fashion_mnist'), **body)
                assert answer.status_code == 200, answer.text
                check(answer.json(), operation['responses']['200']['content']['application/json']['schema'])
                tried += 1
    assert tried == 3 # a picture in two ways, a tensor

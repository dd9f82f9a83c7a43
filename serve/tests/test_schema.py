"What /openapi.json promises is what is answered: requests made from it, right and wrong ones (schemathesis)"
import hypothesis
import pytest
import schemathesis

EXAMPLES = 20 # of each operation


@pytest.fixture(scope='module')
def described(started, models_dir):
    with started('--port', '0', '--models_dir', str(models_dir), FASHION_DEADLINE='30') as service:
        yield schemathesis.openapi.from_url(service.url + 'openapi.json')


schema = schemathesis.pytest.from_fixture('described')


@schema.parametrize()
@hypothesis.settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck))
def test_every_answer_is_one_that_is_described(case): case.call_and_validate(timeout=30)

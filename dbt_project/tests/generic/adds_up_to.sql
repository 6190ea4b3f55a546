{# The numbers of a column add up to the rows of another relation. #}
{% test adds_up_to(model, column, relation) %}

select counted, counted_elsewhere
from
    (select coalesce(sum({{ column }}), 0) as counted from {{ model }}) as here,
    (select count(*) as counted_elsewhere from {{ relation }}) as there
where counted <> counted_elsewhere

{% endtest %}
